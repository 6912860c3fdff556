# Thin verbs over dev.py, which does the work.
.PHONY: setup demo test check bench soak sim-soak fuzz wheel
setup demo test check bench soak sim-soak fuzz wheel:
	@python3 dev.py $@
