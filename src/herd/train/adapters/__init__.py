"""Low-rank adapters on the linear layers of a model: LoRA, DoRA, and QLoRA's 4-bit base; saved as PEFT lays them out."""
