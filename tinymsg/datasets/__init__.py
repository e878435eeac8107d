"""The paper's data sets, and packing them for training.

facts      counts, licences, archives of the published sets, each once (facts.toml)
layouts    which blurry picture belongs to which sharp one
folders    pairs of pictures on the disk, decoded anew for every crop
packed     pairs in one memory-mapped file, cut into crops; open_pairs() opens whatever one names
packing    writes that file
"""
