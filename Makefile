# Tools have a fixed version here and run through `go run`, so that go.mod does not have them.
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOFUMPT       := mvdan.cc/gofumpt@v0.12.0
GORELEASER    := github.com/goreleaser/goreleaser/v2@v2.15.1
GO_LICENSES   := github.com/google/go-licenses@v1.6.0
ACTIONLINT    := github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
GOVULNCHECK   := golang.org/x/vuln/cmd/govulncheck@v1.9.0

# Tests that `make test-containers` runs against a container: PACKAGE or PACKAGE=RUN.
CONTAINER_TESTS := ./internal/pgtest ./outbox

# The fault scenarios are a separate module, so that their dependencies stay out of go.mod.
CHAOS := internal/chaos

# The benchmark program is a separate module, so that the libraries that it compares stay out of go.mod.
BENCH := internal/bench

# The tests of the pages are a separate module, so that their browser driver stays out of go.mod.
BROWSER := internal/browser

# The test of compose.yaml is a separate module, so that the dependencies of Docker Compose stay out of go.mod.
COMPOSE := internal/composetest

# The test of the manifests and the chart is a separate module, so that the dependencies of Helm and Kustomize stay out of go.mod.
DEPLOY := internal/deploytest

# The test of the profiles is a separate module, so that the OpenAPI validator stays out of go.mod.
PROFILES := internal/profiletest

# The PostgreSQL driver of Node, for the writers in docs/writers.
NODE := internal/testtools/node

# Installs programs that tests need in addition to PostgreSQL.
INSTALL     := internal/testtools/install.sh
CHAOS_TOOLS := $(if $(filter Linux,$(shell uname)),pgbouncer faketime)
WRITERS     := nodejs npm python3-psycopg default-jdk-headless libpostgresql-jdbc-java
LINUX_TOOLS := $(if $(filter Linux,$(shell uname)),systemd $(WRITERS))
TEST_TOOLS  := php-cli php-soap libxml2-utils radicale python3-hl7 chromium prometheus $(LINUX_TOOLS) $(CHAOS_TOOLS)

.DEFAULT_GOAL := help

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Show the first five minutes on a throw-away PostgreSQL; KEEP=1 leaves it running, to look at its pages
	@echo 'compiling the demo: the first time this takes a minute or more, and downloads modules' >&2
	go run ./cmd/demo $(if $(KEEP),--keep)

.PHONY: build
build: ## Build the programs into bin/
	go build -o bin/ ./cmd/...

.PHONY: test
test: ## Run all tests; needs PostgreSQL's programs, Docker or LOCKSTEP_TEST_DATABASE_URL, PHP, Chromium and Prometheus
	$(INSTALL) $(TEST_TOOLS)
	$(if $(LINUX_TOOLS),cd $(NODE) && npm ci --silent)
	go test -p 3 -timeout 20m ./...
	cd $(CHAOS) && go test -timeout 20m ./...
	cd $(BENCH) && go test ./...
	cd $(BROWSER) && go test -timeout 10m ./...
	cd $(DEPLOY) && go test ./...
	cd $(PROFILES) && go test ./...

.PHONY: test-race
test-race: ## Run all tests with the race detector; needs a C compiler
	$(INSTALL) $(TEST_TOOLS)
	$(if $(LINUX_TOOLS),cd $(NODE) && npm ci --silent)
	go test -race -p 3 -timeout 40m ./...
	cd $(CHAOS) && go test -race -timeout 40m ./...
	cd $(BENCH) && go test -race ./...
	cd $(BROWSER) && go test -race -timeout 10m ./...
	cd $(DEPLOY) && go test -race ./...
	cd $(PROFILES) && go test -race ./...

.PHONY: docs
docs: ## Write docs/configuration-reference.md from the schema of the configuration
	go test ./internal/config -count=1 -run '^(TestSchema|TestReference)$$' -update

.PHONY: screenshots
screenshots: ## Test the pages in Chromium, and write their pictures into docs/screenshots
	$(INSTALL) chromium
	cd $(BROWSER) && go test -count=1 -timeout 10m -screenshots '$(CURDIR)/docs/screenshots' ./...

.PHONY: chaos
chaos: ## Run every fault scenario in its long form with SEEDS=20 seeds, and print a table; RUN=regexp selects
	$(INSTALL) $(CHAOS_TOOLS)
	cd $(CHAOS) && go test -timeout 5h -v -run '$(or $(RUN),.)' -long -seeds $(or $(SEEDS),20) ./...

.PHONY: soak
soak: ## Run all faults at the same time on steady traffic for DURATION=10m
	$(INSTALL) $(CHAOS_TOOLS)
	cd $(CHAOS) && go test -timeout 0 -v -run '^TestSoak$$' -soak $(or $(DURATION),10m) .

.PHONY: mutants
mutants: ## Build Lockstep with one mistake at a time; a test must catch each; ONLY=regexp selects
	$(INSTALL) $(CHAOS_TOOLS)
	cd $(CHAOS) && go run ./mutants -only '$(ONLY)'

.PHONY: test-containers
test-containers: ## Run database tests against a container, on Linux as root; needs no registry
	internal/pgtest/docker/run.sh $(CONTAINER_TESTS)

# Packages that are tested on each version of PostgreSQL. Some tests need pg_dump or psql, which the builds of other versions lack.
MATRIX      := ./migrations ./outbox ./relay ./internal/doctor
MATRIX_SKIP := RestoredBackupIsUnchanged|DataAloneIsRefused|DeliveriesOfAnotherCluster|OtherWaysToTheSchema

.PHONY: test-matrix
test-matrix: ## Run the tests of the database on PostgreSQL 16, 17 and 18, on Linux with npm; VERSIONS=18, RUN=regexp select
	$(INSTALL) npm
	@set -e; for version in $(or $(VERSIONS),16 17 18); do \
		bin=$$(internal/testtools/postgres.sh $$version); \
		echo "PostgreSQL $$version"; \
		PATH="$$bin:$$PATH" go test -p 2 -timeout 20m -run '$(or $(RUN),.)' -skip '$(MATRIX_SKIP)' $(MATRIX); \
	done

# A command whose many warnings are shown only if it fails.
quietly = $(1) 2>bin/warnings || { cat bin/warnings >&2; exit 1; }

# Licences that go with ours.
LICENCES := Apache-2.0,BSD-2-Clause,BSD-3-Clause,ISC,MIT
THIRD    := deploy/release/THIRD_PARTY.md

.PHONY: licences
licences: ## Write the list of third-party licences; fails for one that does not go with ours
	@mkdir -p bin
	$(call quietly,go run $(GO_LICENSES) check ./cmd/lockstep --allowed_licenses=$(LICENCES))
	$(call quietly,go run $(GO_LICENSES) report ./cmd/lockstep --template deploy/release/third_party.tpl >$(THIRD))

.PHONY: licences-check
licences-check: licences ## Fail if the list of third-party licences is not up to date
	git diff --exit-code -- $(THIRD)

.PHONY: licence-texts
licence-texts: ## Write the texts of third-party licences into bin/licences, for the archives
	@mkdir -p bin
	$(call quietly,go run $(GO_LICENSES) save ./cmd/lockstep --force --save_path bin/licences)

.PHONY: completions
completions: ## Write the completions of all shells into bin/completions, for the archives
	@mkdir -p bin/completions
	@set -e; for shell in bash zsh fish; do go run ./cmd/lockstep completion $$shell >bin/completions/lockstep.$$shell; done

.PHONY: vulncheck
vulncheck: ## Look for known vulnerabilities in what the programs call; needs vuln.go.dev
	go run $(GOVULNCHECK) ./...

.PHONY: workflows-check
workflows-check: ## Check the workflows
	go run $(ACTIONLINT)

.PHONY: release-check
release-check: ## Check the configuration of the release
	go run $(GORELEASER) check deploy/release/goreleaser.yaml

.PHONY: release
release: ## Build the archives of all platforms into dist/, with checksums and SBOMs; PUBLISH=1 signs and publishes a tag
	go run $(GORELEASER) release --clean --config deploy/release/goreleaser.yaml $(if $(PUBLISH),,--snapshot --skip=sign,publish)

.PHONY: reproduce
reproduce: ## Build the program twice in two places and compare the bytes; PLATFORMS="linux/amd64 …" selects
	deploy/release/reproduce.sh $(PLATFORMS)

.PHONY: image
image: ## Build the container images lockstep and lockstep-demo with your Docker engine
	deploy/container/build.sh

.PHONY: test-compose
test-compose: ## Run deploy/compose as a whole on a Docker engine of its own, on Linux as root; needs no registry
	$(COMPOSE)/run.sh

.PHONY: bench
bench: ## Measure against River and the wire, ROUNDS=5, and print a table; PARTS=regexp selects
	cd $(BENCH) && go run . -parts '$(PARTS)' -rounds $(or $(ROUNDS),5) -json bench.json -svg bench.svg

.PHONY: bench-smoke
bench-smoke: ## Run every part of the benchmark once, with small numbers
	cd $(BENCH) && go run . -rounds 1 -scale 0.005

.PHONY: microbench
microbench: ## Run the Go benchmarks; ONLY=regexp selects, COUNT=10 for benchstat
	go test -run '^$$' -bench '$(or $(ONLY),.)' -count $(or $(COUNT),1) -benchmem ./...

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (30s), one after the other; FUZZ=regexp selects
	@set -e; packages=$$(go list ./...); \
	for package in $$packages; do \
		listed=$$(go test -list '^Fuzz' $$package) || { echo "$$listed"; exit 1; }; \
		for target in $$(echo "$$listed" | grep '^Fuzz' | grep -E '$(or $(FUZZ),.)'); do \
			echo "$$package $$target"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(or $(FUZZTIME),30s) $$package; \
		done; \
	done

.PHONY: check
check: fmt-check vet lint tidy-check build workflows-check licences-check ## Run the checks that CI runs before the tests

.PHONY: fmt
fmt: ## Format the code
	go run $(GOFUMPT) -w .

.PHONY: fmt-check
fmt-check: ## Fail if code is not formatted
	@unformatted=$$(go run $(GOFUMPT) -l .) || exit 1; \
	if [ -n "$$unformatted" ]; then echo "not formatted, run 'make fmt':"; echo "$$unformatted"; exit 1; fi

.PHONY: vet
vet: ## Run go vet
	go vet ./...
	cd $(CHAOS) && go vet ./...
	cd $(BENCH) && go vet ./...
	cd $(BROWSER) && go vet ./...
	cd $(COMPOSE) && go vet ./...
	cd $(DEPLOY) && go vet ./...
	cd $(PROFILES) && go vet ./...

.PHONY: lint
lint: ## Run the linters of .golangci.yml, among them the import rules
	go run $(GOLANGCI_LINT) run ./...
	cd $(CHAOS) && go run $(GOLANGCI_LINT) run ./...
	cd $(BENCH) && go run $(GOLANGCI_LINT) run ./...
	cd $(BROWSER) && go run $(GOLANGCI_LINT) run ./...
	cd $(COMPOSE) && go run $(GOLANGCI_LINT) run ./...
	cd $(DEPLOY) && go run $(GOLANGCI_LINT) run ./...
	cd $(PROFILES) && go run $(GOLANGCI_LINT) run ./...

.PHONY: tidy-check
tidy-check: ## Fail if go.mod or go.sum are not tidy or a module was tampered with
	go mod verify
	go mod tidy -diff
	cd $(CHAOS) && go mod verify && go mod tidy -diff
	cd $(BENCH) && go mod verify && go mod tidy -diff
	cd $(BROWSER) && go mod verify && go mod tidy -diff
	cd $(COMPOSE) && go mod verify && go mod tidy -diff
	cd $(DEPLOY) && go mod verify && go mod tidy -diff
	cd $(PROFILES) && go mod verify && go mod tidy -diff

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin dist
