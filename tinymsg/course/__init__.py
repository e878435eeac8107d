"""What the lessons show and ask with: figures, widgets, checks of exercises, the learner's own photograph.

    checks     the learner's function held against the library's
    figures    plots, and pictures computed beforehand under sliders
    live       pictures computed on request
    photo      the learner's own photograph
    monitor    a training of its own process, started and watched from a notebook
"""
