.DEFAULT_GOAL := help
.PHONY: help demo test clean

help:
	@echo "make demo   watch actions travel from a broker into two deckies, and back"
	@echo "make test   run the whole suite against a private broker and real deckies"
	@echo "make clean  remove what was built"

demo:
	@scripts/demo

test:
	@scripts/test

clean:
	@scripts/engine wipe
	@rm -rf target
