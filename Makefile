.DEFAULT_GOAL := help
.PHONY: help demo test test-rabbitmq4 soak clean

help:
	@echo "make demo   watch actions travel from a broker into two deckies, and back"
	@echo "make test   run the whole suite against a private broker and real deckies"
	@echo "make soak   ten minutes of random faults under load, with a report (SECONDS=600)"
	@echo "make test-rabbitmq4   the tests that concern the broker, against RabbitMQ 4; needs root"
	@echo "make clean  remove what was built"

demo:
	@scripts/demo

test:
	@scripts/test

test-rabbitmq4:
	@scripts/rabbitmq4

soak:
	@scripts/soak $(SECONDS)

clean:
	@scripts/engine wipe
	@rm -rf target
