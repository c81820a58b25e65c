"""Who acts: a policy turns inputs and actions into log-probs, entropies and values. It never draws."""
