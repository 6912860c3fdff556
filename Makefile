# Thin verbs over dev.py, which does the work.
.PHONY: setup demo test check bench soak sim-soak wheel
setup demo test check bench soak sim-soak wheel:
	@python3 dev.py $@
