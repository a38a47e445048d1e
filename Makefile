.PHONY: check test smoke base

check:   ## lint and format
	ruff check . && ruff format --check .
test:    ## all tests
	pytest
smoke:   ## the whole pipeline in under a minute
	python -m echoink.train experiment=quickstart
base:    ## make a base like the embedded tiny model, in outputs/tiny_base
	python -m echoink.tiny
