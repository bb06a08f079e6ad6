# Every target does its own set-up: a Debian or Ubuntu machine with a Rust toolchain is enough.

TARGET := $(or $(CARGO_TARGET_DIR),target)
# What the demos run: `debug` is the binary that the tests have built, and is taken as it is.
BUILD ?= release
BINARY := $(TARGET)/$(BUILD)/qcowtool
# Only the whole suite writes what the repository shows.
WHOLE := $(if $(findstring --quick,$(BENCH))$(findstring --only,$(BENCH)),,--report docs/performance)

.PHONY: help demo demo-migration test test-long test-migration iotests clients fuzz coverage loom miri tsan bench bench-pieces bench-writing bench-peers \
  lint man release deb rpm package-test static container reproducible crates api msrv book soak debug clean

help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

demo: $(BUILD) ## Show the main job: an orphaned chain becomes one proven image
	@scripts/setup demo
	@QCOWTOOL=$(BINARY) demo/run

demo-migration: $(BUILD) ## Show it where it happens: two libvirt hosts, a deleted template, a live guest (as root)
	@scripts/setup test-migration
	cargo build --locked -p rig
	@QCOWTOOL=$(BINARY) $(TARGET)/debug/rig run demo/migration

test: ## Build and run every test, those of live migration where two hosts can be made
	@scripts/setup test
	@scripts/test

test-long: ## The same, and everything of the searches of which `make test` tries a sample
	@scripts/setup test
	@scripts/test long

test-migration: ## Install two hosts, and run the tests that migrate guests between them (as root)
	@scripts/setup test-migration
	@scripts/test migration

iotests: ## Run QEMU's own tests of qemu-img with this program in its place (IOTESTS='own quick'; see scripts/iotests)
	@scripts/setup test
	@scripts/iotests $(IOTESTS)

clients: ## Run programs that call qemu-img on this one: libvirt, virt-install, oslo.utils, libguestfs (CLIENTS='oslo'; see scripts/clients)
	@scripts/setup test
	@scripts/clients $(CLIENTS)

fuzz: ## Run each fuzz target for FUZZ_SECONDS (60), or those in FUZZ_TARGETS
	@scripts/setup fuzz
	@scripts/fuzz $(or $(FUZZ_SECONDS),60) $(FUZZ_TARGETS)

coverage: ## Show what of qcow::format and qcow::image the fuzz targets reach, where there is a nightly toolchain
	@scripts/setup build
	@scripts/coverage

loom: ## Try every order in which the engine's workers can take turns, and the writer's requests can meet
	@scripts/setup build
	RUSTFLAGS='--cfg loom' cargo test --locked --profile quick --target-dir $(TARGET)/loom -p qcowtool-qcow --lib -- ops::work::sequencer image::write::gate

miri: ## Run the tests of qcow::format and a little more under Miri, where there is a nightly toolchain with it
	@scripts/miri

tsan: ## Run the tests of what is done in parallel under ThreadSanitizer, where there is a nightly toolchain
	@scripts/setup build
	@scripts/tsan

bench: release ## Measure beside qemu-img (BENCH='--quick' or other options; see benches/README.md)
	@scripts/setup bench
	cargo build --release --locked -p benches
	$(TARGET)/release/suite --qcowtool $(BINARY) $(WHOLE) $(BENCH)

bench-pieces: ## Measure the pieces of the engine by themselves
	@scripts/setup build
	cargo bench --locked -p benches --bench pieces

bench-writing: ## Measure reading and writing in place (BENCH_WRITING='--only E6'; without it docs/performance/writing.md is written)
	@scripts/setup bench
	cargo bench --locked -p benches --bench writing -- --dir /dev/shm $(or $(BENCH_WRITING),--report $(CURDIR)/docs/performance/writing.md)

bench-peers: ## Measure other Rust libraries for QCOW2 beside ours (PEERS='--writing --dir /dev/shm' or other options)
	@scripts/setup bench
	cargo build --release --locked --manifest-path benches/peers/Cargo.toml --target-dir $(TARGET)/peers -p imago-sync
	cargo run --release --locked --manifest-path benches/peers/Cargo.toml --target-dir $(TARGET)/peers -- \
	  --report docs/performance/peers.md $(PEERS)

lint: ## Formatting, clippy, docs, licences and advisories
	@scripts/setup lint
	@scripts/lint

man: release ## Write man pages and shell completions under target/
	$(BINARY) generate man $(TARGET)/man
	$(BINARY) generate completions $(TARGET)/completions

release: ## Build the binary
	@scripts/setup build
	cargo build --release --locked -p qcowtool

deb: ## Make Debian packages, qcowtool and qcowtool-libvirt, in target/dist/deb
	@scripts/setup package
	@scripts/package deb

rpm: ## Make RPM packages of the same for Fedora and its relatives, in target/dist/rpm
	@scripts/setup rpm
	@scripts/package rpm

package-test: deb ## Install them into a fresh minimal Debian, and run the demo there (as root)
	@scripts/setup package-test
	@scripts/package-test $(TARGET)/dist/deb

static: ## Build a static program, without libvirt, and an archive of it, in target/dist/static
	@scripts/setup static
	@scripts/package static

container: static ## Make an image of the static program, an OCI archive
	@scripts/setup container
	@scripts/package container

reproducible: ## Build the last commit twice in two folders, and compare the bytes
	@scripts/setup static
	@scripts/reproducible

api: ## List the public interface of the libraries anew, in docs/api
	@scripts/setup build
	@scripts/api write

crates: ## Make the packages of the crates, each compiled from its package alone
	@scripts/setup build
	@scripts/crates

msrv: ## Compile the product with the lowest Rust that it names
	@scripts/setup msrv
	@scripts/msrv

book: $(BUILD) ## Make a site of the documents, in target/book/html
	@scripts/setup book
	@scripts/book $(BINARY) $(TARGET)/book

soak: ## For HOURS (1): random operations, kills and power cuts on three file systems (MIGRATIONS=on: migrations too; as root)
	@scripts/setup soak
	@HOURS=$(or $(HOURS),1) scripts/soak

debug:
	@test -x $(BINARY) || cargo build --locked --workspace --bins

clean: ## Remove what was built
	cargo clean
