"""What the lessons show and ask with.

checks     the learner's function held against the library's
display    pictures on a page: with words, and under sliders that need no kernel
figures    plots
live       pictures computed on request
photo      the learner's own photograph
monitor    a training of its own process, started and watched from a notebook
"""
