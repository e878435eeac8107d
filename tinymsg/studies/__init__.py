"""The trials and maps whose results the lessons quote.

signals      one-dimensional pairs
toy          the whole method on signals, trained to near convergence in a minute
pictures     the three arms on pictures
trials       which trainings a study is made of, how one is run, how results are compared
steps        how few network evaluations are enough
photographs  which weights and setting may be the default of `deblur`
"""
