"""What a long training needs beyond train.py's loss and loop.

checkpoint    checkpoints, one training a folder
estimate      time and memory, before it starts
validation    fixed pictures and noise, looked at while a model trains
runs          a whole training: data, logs, signals
monitor       a training of its own process, started and watched from a notebook
"""
