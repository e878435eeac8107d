"""The training runs whose results the lessons quote.

signals      one-dimensional pairs
toy          the whole method on signals, trained to near convergence in a minute
trials       the toy's studies: which training runs one is made of, how one is carried out
trial        the trial of the paper's own form: claim, arms, test sets, scores
running      carries it out
verdicts     what its results say
__main__     python -m tinymsg.studies trial
photographs  which weights and setting may be the default of `deblur`
"""
