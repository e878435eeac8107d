"""What the lessons show and ask with.

checks     the learner's function held against the library's
display    pictures on a page: with words, and under sliders that need no kernel
figures    plots
live       pictures computed on request
photo      the learner's own photograph
"""
