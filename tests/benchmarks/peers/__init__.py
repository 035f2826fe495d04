"""layermesh beside AirLLM, accelerate's disk offload and llama.cpp: same model, threads, memory cap and disk, in one run.

`environments` installs each peer into a virtual environment of its own, `models` builds the checkpoints, `runners` has one
small program per peer, `running` starts them under a memory cap with nothing of the model in the page cache, and
`comparison` lets them take turns and writes down what came out.
"""
