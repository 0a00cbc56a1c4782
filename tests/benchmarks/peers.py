"""Pythae and Pyro, as their documentation shows them; what was chosen: see ``contenders.py``."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable
from types import SimpleNamespace

import torch
from model import BATCH, LATENT, LEARNING_RATE, PIXELS, Networks, to
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


@functools.cache
def silent_pythae() -> SimpleNamespace:
    """The parts of pythae that are needed, its log and bar switched off."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig, training_callbacks

    logging.getLogger("pythae").setLevel(logging.ERROR)
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("pythae"):
            logging.getLogger(name).disabled = True
    training_callbacks.tqdm = functools.partial(training_callbacks.tqdm, disable=True)

    class Encoder(BaseEncoder):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            mean, log_variance = self.network(x).chunk(2, dim=1)
            return ModelOutput(embedding=mean, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, z):
            return ModelOutput(reconstruction=self.network(z).sigmoid())

    return SimpleNamespace(
        VAE=VAE,
        VAEConfig=VAEConfig,
        Encoder=Encoder,
        Decoder=Decoder,
        TrainingPipeline=TrainingPipeline,
        BaseTrainerConfig=BaseTrainerConfig,
    )


def pythae_vae(networks: Networks) -> nn.Module:
    """Pythae's VAE around the two networks, its decoder with the sigmoid that its loss needs."""
    pythae = silent_pythae()
    config = pythae.VAEConfig(input_dim=(PIXELS,), latent_dim=LATENT, reconstruction_loss="bce")
    return pythae.VAE(config, pythae.Encoder(networks.encoder), pythae.Decoder(networks.decoder))


def by_pythae(networks: Networks, x: Tensor, epochs: int, device: str, fused: bool = True) -> None:
    """Its trainer, with torch's fused Adam or, as documented, the default one."""
    pythae = silent_pythae()
    with tempfile.TemporaryDirectory() as folder:
        config = pythae.BaseTrainerConfig(
            output_dir=folder,
            num_epochs=epochs,
            per_device_train_batch_size=BATCH,
            learning_rate=LEARNING_RATE,
            optimizer_cls="Adam",
            optimizer_params={"fused": True} if fused else None,
            no_cuda=device == "cpu",
        )
        pythae.TrainingPipeline(pythae_vae(networks), config)(train_data=x)


def by_pyro(loss: str, tuned: bool = True) -> Callable[[Networks, Tensor, int, str], None]:
    """Stochastic variational inference, after the VAE of Pyro's tutorials.

    Tuned, it has validation off, the fused Adam, and batches that are slices of a tensor; in the
    tutorial validation is on, as it is by default, and data come from torch's DataLoader.
    """

    def train(networks: Networks, x: Tensor, epochs: int, device: str) -> None:
        import pyro
        import pyro.distributions as dist

        encoder, decoder = to(networks, device)
        x = x.to(device)

        def model(batch):
            pyro.module("decoder", decoder)
            with pyro.plate("data", len(batch)):
                mean = batch.new_zeros(len(batch), LATENT)
                z = pyro.sample("z", dist.Normal(mean, torch.ones_like(mean)).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=batch)

        def guide(batch):
            pyro.module("encoder", encoder)
            with pyro.plate("data", len(batch)):
                mean, log_variance = encoder(batch).chunk(2, dim=1)
                pyro.sample("z", dist.Normal(mean, (0.5 * log_variance).exp()).to_event(1))

        pyro.clear_param_store()
        optimizer = pyro.optim.Adam({"lr": LEARNING_RATE, **({"fused": True} if tuned else {})})
        loader = DataLoader(TensorDataset(x), batch_size=BATCH, shuffle=True)
        with pyro.validation_enabled(not tuned):
            svi = pyro.infer.SVI(model, guide, optimizer, getattr(pyro.infer, loss)())
            for _ in range(epochs):
                if tuned:
                    for rows in torch.randperm(len(x), device=device).split(BATCH):
                        svi.step(x[rows])
                else:
                    for (batch,) in loader:
                        svi.step(batch)

    return train
