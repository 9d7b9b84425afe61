"""From temporal patches to events: the vision pass, heatmaps, zones, RAE, scores, triggers."""
