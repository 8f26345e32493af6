"""Tools that a model may call: the seam, the code interpreter's jail, web, files, and the Model Context Protocol both ways.

What a model writes is untrusted, and so is what a tool brings back. Knows nothing of models, prompts, servers or agents, and no torch.
"""
