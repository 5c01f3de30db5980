"""Gated MLPs, (activation(x gate) * (x up)) down: SwiGLU and GEGLU, with both inward products in one kernel."""
