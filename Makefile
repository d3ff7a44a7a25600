# customer-relay: the commands a developer and CI use. `make` alone prints them.

CARGO ?= cargo
LOCKED := --locked
SEEDS ?= 20

.DEFAULT_GOAL := help
.PHONY: help setup run test mutants chaos cluster-test image image-test validate lint deny sbom check bench simulator clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Make sure there are a RabbitMQ and a PostgreSQL to test with (Docker, or the system's packages)
	@tests/support/setup.sh

run: ## The tour: broker, simulator and relay, 1,215 events through them, and the account
	@tests/support/setup.sh --demo
	$(CARGO) test $(LOCKED) --quiet --test demo

test: setup ## Unit tests, and the promises on every RabbitMQ release there is
	$(CARGO) test $(LOCKED)

mutants: ## Mistakes planted in a copy, one after another; the simulation must catch each: MUTANT=name for one
	@MUTANT="$(MUTANT)" ONLY="$(ONLY)" tests/support/mutants.sh

chaos: setup ## Storms of faults, one a seed, every event accounted for: SEEDS=20, or SEED=n alone
	SEEDS=$(SEEDS) SEED=$(SEED) $(CARGO) test $(LOCKED) --quiet --test chaos

cluster-test: setup ## A cluster of three, whose leader is killed, frozen and cut off (needs Docker)
	$(CARGO) test $(LOCKED) --quiet --test cluster

image: ## The container image customer-relay, built by this machine's cargo; prints its size
	@deploy/image.sh

image-test: setup image ## The image, hardened, against a RabbitMQ container; prints its start time
	@tests/support/image-test.sh

validate: ## Every file of deploy/, and every script, by a tool that knows its kind
	@tests/support/validate.sh

lint: ## Format and lints, warnings are errors
	$(CARGO) fmt --check
	$(CARGO) clippy $(LOCKED) --all-targets -- -D warnings

deny: ## Advisories, licences, bans and sources of every dependency
	@tests/support/deny.sh

sbom: ## What is in the programs, as CycloneDX: target/sbom/
	@tests/support/sbom.sh

check: lint deny validate test run ## All that CI checks; cluster and image where Docker runs
	@if timeout 20 docker version >/dev/null 2>&1; then \
		$(MAKE) --no-print-directory cluster-test image-test; \
	else \
		echo "*** cluster test and image test not run: no Docker ***"; \
	fi

bench: ## The relay against bare loops: events/s, CPU per event, latency, memory; AGAINST=PROGRAM: another build
	@tests/support/setup.sh --demo
	AGAINST=$(AGAINST) $(CARGO) bench $(LOCKED) --bench throughput

simulator: ## A portal simulator on 127.0.0.1:8080 (token demo-token, secret demo-secret)
	$(CARGO) run $(LOCKED) --release --quiet --bin portal-simulator

clean: ## Remove what was built
	$(CARGO) clean
