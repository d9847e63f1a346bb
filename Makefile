.DEFAULT_GOAL := help
.PHONY: help demo up down test test-rabbitmq4 soak bench bench-quick clean

help:
	@echo "make demo   watch actions travel from a broker into two deckies, and back"
	@echo "make up     start a broker and two deckies to play with (docs/tutorial.md); make down ends them"
	@echo "make test   run the whole suite against a private broker and real deckies"
	@echo "make soak   ten minutes of random faults under load, with a report (SECONDS=600)"
	@echo "make test-rabbitmq4   the tests that concern the broker, against RabbitMQ 4; needs root"
	@echo "make bench  measure it beside what one would use instead, a quarter of an hour; ROUNDS=5, ROWS=latency,bodies for some;"
	@echo "            BEFORE=REVISION compares that revision's build with this one"
	@echo "make bench-quick   one round with small counts, under three minutes"
	@echo "make clean  remove what was built"

demo:
	@scripts/demo

up:
	@scripts/playground up

down:
	@scripts/playground down

test:
	@scripts/test

test-rabbitmq4:
	@scripts/rabbitmq4

soak:
	@scripts/soak $(SECONDS)

bench:
	@scripts/bench "$(ROUNDS)" "$(ROWS)"

bench-quick:
	@scripts/bench 1 "$(ROWS)"

clean:
	@scripts/playground down
	@scripts/engine wipe
	@rm -rf target
