# The two commands: `make demo` shows what FlatSat does, `make test` runs all that CI runs.
.DEFAULT_GOAL := help
.PHONY: help demo test lint clean

VENV := .venv/bin

help:  ## say what can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo:  ## set up, then compress, measure, search and report on this machine (minutes)
	@./bootstrap main
	@$(VENV)/flatsat demo

test:  ## set up, then check style, types, room arrows and behaviour
	@./bootstrap dev
	@$(MAKE) --no-print-directory lint
	@$(VENV)/pytest -q -n 2 --dist worksteal

lint:
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy
	@$(VENV)/lint-imports

clean:  ## remove what the demo wrote (the environment stays)
	rm -rf lab
