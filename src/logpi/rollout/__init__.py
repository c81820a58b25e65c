"""How experience is gathered, without gradients."""
