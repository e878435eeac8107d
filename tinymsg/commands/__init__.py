"""The commands of the command line, one a file: add(commands) declares it, run(args) carries it out.

Their modules import nothing heavy at the top, so that --help answers at once.
"""
