"""Which pass a layer is in: one of training, one that gradients follow, or activation checkpointing's second."""

import torch


def differentiated() -> bool:
    """Whether gradients may follow this pass: they are enabled, or only reentrant checkpointing has them off."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    # in the forward of an autograd.Function, as reentrant checkpointing's first pass is, torch has forward-mode
    # gradients off too; no_grad leaves those on
    return not torch._C._is_fwd_grad_enabled() and not torch.is_inference_mode_enabled()
