"""Answers to the exercises, as readers may write them: one module for each page.

``RIGHT`` maps the number of an exercise to further right answers, written in other ways than the
solution. ``WRONG`` maps it to wrong ones, each with a part of the sentence that it must get; the
sentence of every declared mistake has to be earned by one of them.
"""
