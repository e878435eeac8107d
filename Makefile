# make course | test | lab | ... : each sets up .venv first, and does so only when something changed.
# PYTHON=python3.11 chooses the interpreter.

PYTHON ?=
VENV_PYTHON := .venv/bin/python
# Two tests at a time, each with one thread: threads of two processes on the same cores wait for each other.
# Agg: no window, whatever the caller's matplotlib is set to
PYTEST := MPLBACKEND=Agg OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 --dist worksteal

# Same bytes at every run
export PYTHONHASHSEED := 0

.PHONY: help setup course lab test test-course lint site bench check clean

help:
	@echo "make course       run all lessons headless; executed notebooks and HTML go to runs/course/"
	@echo "make lab          open the lessons in JupyterLab"
	@echo "make test         run the tests, but not the long ones"
	@echo "make test-course  run the long ones: the lessons' committed outputs, every widget, same bytes, kills, the wheel"
	@echo "make lint         look over format, common mistakes and types; nothing is changed"
	@echo "make site         make the web pages in runs/site/; lessons are run only if they have changed since make course"
	@echo "make bench        compare speed with other libraries, on an idle machine (an hour or two)"
	@echo "make check        look over the committed notebooks without running them"
	@echo "make setup        only make .venv (the others do it by themselves)"
	@echo "make clean        remove .venv, runs/course and runs/site"

setup:
	@PYTHON='$(PYTHON)' sh setup.sh

course: setup
	@$(VENV_PYTHON) notebooks/course.py run

lab: setup
	@$(VENV_PYTHON) notebooks/course.py lab

test: setup
	$(PYTEST)

test-course: setup
	$(PYTEST) -m course

lint: setup
	$(VENV_PYTHON) -m ruff format --check --output-format concise
	$(VENV_PYTHON) -m ruff check --output-format concise
	$(VENV_PYTHON) -m basedpyright --pythonpath $(VENV_PYTHON)

site: setup
	@$(VENV_PYTHON) notebooks/course.py run --stale
	@rm -rf runs/site
	@$(VENV_PYTHON) -m sphinx -q -E -W --keep-going -c docs -d runs/doctrees . runs/site
	@echo "site: runs/site/index.html"

bench: setup
	@$(VENV_PYTHON) -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(VENV_PYTHON) benchmarks/bench.py

check: setup
	@$(VENV_PYTHON) notebooks/course.py check

clean:
	rm -rf .venv runs/course runs/doctrees runs/site
