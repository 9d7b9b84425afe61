lint-tree:
	mkdir -p build/tree/tvau_edge
	for r in devices runtime benchmarks quantize export reference; do ln -sfn ../../../$$r build/tree/tvau_edge/$$r; done
