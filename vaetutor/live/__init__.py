r"""Live figures: pictures of a page that answer to sliders, touch and keys, with no kernel behind.

Each function takes numbers that a cell has computed, draws a still picture of them, and returns a
:class:`Live`; as the last line of a cell it shows itself::

    live.mean_field(0.9, alt="Two ellipses ...", caption="Turn the correlation up ...")

The HTML holds the numbers as JSON, the still picture and the small script ``live.js`` of this
package, and asks for nothing else: it lives in a notebook on Colab and in a saved page without a
network. The book keeps one copy of the script for all its figures. Where no script runs, on paper
for instance, the still picture is what there is.

A figure also carries *checks*: positions of its sliders with results that Python computed, from
the package and not by the script's formulas. The tests of the book set the sliders in a browser
and compare.
"""

from vaetutor.live._base import Live
from vaetutor.live._bound import bound
from vaetutor.live._latent_plane import latent_plane
from vaetutor.live._mean_field import mean_field
from vaetutor.live._rate_distortion import rate_distortion
from vaetutor.live._reparameterisation import reparameterisation

__all__ = ["Live", "bound", "latent_plane", "mean_field", "rate_distortion", "reparameterisation"]
