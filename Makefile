# Where things go: make install DESTDIR=/tmp/package PREFIX=/usr
PREFIX     ?= /usr
DESTDIR    ?=
MANDIR     ?= $(PREFIX)/share/man
# Rootless podman reads /usr/share/containers/oci/hooks.d, unless containers.conf(5)
# says otherwise.
HOOK_BIN_DIR ?= $(LIBEXECDIR)/oci/hooks.d
HOOK_DIR     ?= $(PREFIX)/share/containers/oci/hooks.d
SYSTEMDDIR   ?= $(PREFIX)/lib/systemd
CATALOGDIR   ?= $(SYSTEMDDIR)/catalog
TMPFILESDIR  ?= $(PREFIX)/lib/tmpfiles.d
SELINUXDIR   ?= $(PREFIX)/share/selinux/packages
BASHCOMPDIR  ?= $(PREFIX)/share/bash-completion/completions
# Debian's zsh does not read /usr/share/zsh/site-functions.
ZSHCOMPDIR   ?= $(PREFIX)/share/zsh/$(if $(and $(filter /usr,$(PREFIX)),$(wildcard $(DESTDIR)/etc/debian_version)),vendor-completions,site-functions)
FISHCOMPDIR  ?= $(PREFIX)/share/fish/vendor_completions.d
# ansible-playbook of Debian and Fedora looks for roles in /usr/share/ansible/roles.
ROLEDIR      ?= $(PREFIX)/share/ansible/roles
# What other programs read by a path that somebody gives them.
DATADIR      ?= $(PREFIX)/share/oci-mainpid

# The unit's name follows from /run/oci-mainpid, see systemd.mount(5).
RUN_MOUNT := run-oci\x2dmainpid.mount

# oci-mainpid finds notify-mainpid by where it is itself.
BINDIR     := $(PREFIX)/bin
LIBEXECDIR := $(PREFIX)/libexec

# git says what the version is: 1.2.3 at the tag v1.2.3, 1.2.3+5.gHASH five commits
# later. It does not in a tarball, or in a directory of another user's: there,
# make VERSION=1.2.3.
GIT_VERSION := $(shell [ ! -e .git ] || { \
	git describe --tags --match='v[0-9]*' --abbrev=12 --dirty=+dirty || \
	echo "v0.0.0-$$(git rev-list --count HEAD)-g$$(git describe --always --abbrev=12 --exclude='*' --dirty=+dirty)"; } 2>/dev/null | \
	sed -nE 's/-([0-9]+)-g([0-9a-f]+)/+\1.g\2/; s/(\+.*)\+dirty/\1.dirty/; s/^v([0-9].*)/\1/p')
VERSION ?= $(or $(GIT_VERSION),0.0.0+unknown)
# The time that files of a release have, in seconds since 1970.
export SOURCE_DATE_EPOCH ?= $(or $(if $(GIT_VERSION),$(shell git log -1 --format=%ct)),$(shell stat -c %Y CHANGELOG.md))

GO      ?= go
INSTALL ?= install
TOOLS   := $(GO) tool -modfile=tools/go.mod
export CGO_ENABLED := 0
# For all, so that what is compiled once is taken by tests, programs and tools.
export GOFLAGS := $(filter-out -trimpath,$(GOFLAGS)) -trimpath

PROGRAMS := oci-mainpid-hook notify-mainpid podman-pause oci-mainpid
MANPAGES := $(patsubst docs/%.md,bin/man/%,$(wildcard docs/*.[1-8].md))
ROLE     := $(patsubst dist/ansible/roles/%,%,$(wildcard dist/ansible/roles/oci_mainpid/*/*.yml))
# Units that run oci-mainpid by a timer.
TIMERS   := oci-mainpid-auto-update oci-mainpid-metrics

.PHONY: all build man completions install uninstall sbom package-root deb rpm selinux reproducible demo test unit cross emulated vsock e2e everywhere unstable attack matrix inits fleet machines soak check fuzz bench clean
all: build man

# The same source makes the same bytes anywhere: make reproducible. What git says
# of the source is in there, too: go version -m.
build:
	$(GO) build -buildvcs=$(if $(GIT_VERSION),auto,false) -ldflags='-s -w -X main.version=$(VERSION)' -o bin/ $(addprefix ./cmd/,$(PROGRAMS))

man: $(MANPAGES)
bin/man/%: docs/%.md
	@mkdir -p $(@D)
	$(GO) tool go-md2man -in $< -out $@

# The programs that are built may be for another machine than this one.
completions:
	@mkdir -p bin/completions
	for shell in bash zsh fish; do env -u GOOS -u GOARCH $(GO) run ./cmd/oci-mainpid completion $$shell >bin/completions/$$shell || exit; done

install: build man completions
	$(INSTALL) -D -m 755 bin/oci-mainpid-hook $(DESTDIR)$(HOOK_BIN_DIR)/oci-mainpid-hook
	$(INSTALL) -D -m 755 bin/notify-mainpid $(DESTDIR)$(LIBEXECDIR)/oci-mainpid/notify-mainpid
	$(INSTALL) -D -m 755 bin/podman-pause $(DESTDIR)$(LIBEXECDIR)/oci-mainpid/podman-pause
	$(INSTALL) -D -m 755 bin/oci-mainpid $(DESTDIR)$(BINDIR)/oci-mainpid
	$(INSTALL) -d $(DESTDIR)$(SYSTEMDDIR)/system-generators $(DESTDIR)$(HOOK_DIR)
	ln -srf $(DESTDIR)$(BINDIR)/oci-mainpid $(DESTDIR)$(SYSTEMDDIR)/system-generators/oci-mainpid-generator
	sed 's|/usr/libexec/oci/hooks.d|$(HOOK_BIN_DIR)|' hooks.d/oci-mainpid-hook.json > $(DESTDIR)$(HOOK_DIR)/oci-mainpid-hook.json
	chmod 644 $(DESTDIR)$(HOOK_DIR)/oci-mainpid-hook.json
	$(INSTALL) -D -m 644 dist/tmpfiles.d/oci-mainpid.conf $(DESTDIR)$(TMPFILESDIR)/oci-mainpid.conf
	$(INSTALL) -D -m 644 dist/systemd/run-oci-mainpid.mount '$(DESTDIR)$(SYSTEMDDIR)/system/$(RUN_MOUNT)'
	sed 's|/usr/libexec|$(LIBEXECDIR)|' dist/systemd/oci-mainpid-pause@.service > $(DESTDIR)$(SYSTEMDDIR)/system/oci-mainpid-pause@.service
	chmod 644 $(DESTDIR)$(SYSTEMDDIR)/system/oci-mainpid-pause@.service
	for timer in $(TIMERS); do \
		$(INSTALL) -m 644 dist/systemd/$$timer.service dist/systemd/$$timer.timer $(DESTDIR)$(SYSTEMDDIR)/system/ && \
		sed -i 's|/usr/bin|$(BINDIR)|' $(DESTDIR)$(SYSTEMDDIR)/system/$$timer.service || exit; done
	$(INSTALL) -d $(DESTDIR)$(SYSTEMDDIR)/system/local-fs.target.wants
	ln -sf '../$(RUN_MOUNT)' $(DESTDIR)$(SYSTEMDDIR)/system/local-fs.target.wants/
	$(INSTALL) -D -m 644 dist/selinux/oci_mainpid.cil $(DESTDIR)$(SELINUXDIR)/oci_mainpid.cil
	$(INSTALL) -D -m 644 dist/catalog/oci-mainpid.catalog $(DESTDIR)$(CATALOGDIR)/oci-mainpid.catalog
	$(INSTALL) -D -m 644 bin/completions/bash $(DESTDIR)$(BASHCOMPDIR)/oci-mainpid
	$(INSTALL) -D -m 644 bin/completions/zsh $(DESTDIR)$(ZSHCOMPDIR)/_oci-mainpid
	$(INSTALL) -D -m 644 bin/completions/fish $(DESTDIR)$(FISHCOMPDIR)/oci-mainpid.fish
	$(INSTALL) -D -m 644 -t $(DESTDIR)$(DATADIR) dist/prometheus/oci-mainpid.rules.yml dist/grafana/oci-mainpid.json
	for file in $(ROLE); do $(INSTALL) -D -m 644 dist/ansible/roles/$$file $(DESTDIR)$(ROLEDIR)/$$file || exit; done
	for page in $(MANPAGES); do $(INSTALL) -D -m 644 $$page $(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/} || exit; done

uninstall:
	rm -f $(DESTDIR)$(HOOK_BIN_DIR)/oci-mainpid-hook \
		$(DESTDIR)$(HOOK_DIR)/oci-mainpid-hook.json \
		$(DESTDIR)$(LIBEXECDIR)/oci-mainpid/notify-mainpid \
		$(DESTDIR)$(LIBEXECDIR)/oci-mainpid/podman-pause \
		$(DESTDIR)$(BINDIR)/oci-mainpid \
		$(DESTDIR)$(SYSTEMDDIR)/system-generators/oci-mainpid-generator \
		$(DESTDIR)$(TMPFILESDIR)/oci-mainpid.conf \
		$(DESTDIR)$(SYSTEMDDIR)/system/oci-mainpid-pause@.service \
		$(foreach timer,$(TIMERS),$(DESTDIR)$(SYSTEMDDIR)/system/$(timer).service $(DESTDIR)$(SYSTEMDDIR)/system/$(timer).timer) \
		$(DESTDIR)$(DATADIR)/oci-mainpid.rules.yml $(DESTDIR)$(DATADIR)/oci-mainpid.json \
		$(addprefix $(DESTDIR)$(ROLEDIR)/,$(ROLE)) \
		'$(DESTDIR)$(SYSTEMDDIR)/system/$(RUN_MOUNT)' '$(DESTDIR)$(SYSTEMDDIR)/system/local-fs.target.wants/$(RUN_MOUNT)' \
		$(DESTDIR)$(CATALOGDIR)/oci-mainpid.catalog $(DESTDIR)$(SELINUXDIR)/oci_mainpid.cil \
		$(DESTDIR)$(BASHCOMPDIR)/oci-mainpid $(DESTDIR)$(ZSHCOMPDIR)/_oci-mainpid $(DESTDIR)$(FISHCOMPDIR)/oci-mainpid.fish
	for page in $(MANPAGES); do rm -f $(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/} || exit; done
	for dir in $(LIBEXECDIR)/oci-mainpid $(DATADIR) $(addprefix $(ROLEDIR)/,$(sort $(patsubst %/,%,$(dir $(ROLE)))) oci_mainpid) $(foreach dir,$(SELINUXDIR) $(ROLEDIR) $(HOOK_BIN_DIR) $(HOOK_DIR) $(BASHCOMPDIR) $(ZSHCOMPDIR) $(FISHCOMPDIR),$(dir) $(patsubst %/,%,$(dir $(dir)))); do \
		[ ! -d $(DESTDIR)$$dir ] || rmdir --ignore-fail-on-non-empty $(DESTDIR)$$dir || exit; done

# A bill of materials of each program, in CycloneDX's format. It names the tool by
# its bytes, so these must be the same anywhere, too.
sbom: build
	env -u GOOS -u GOARCH $(GO) build -modfile=tools/go.mod -o bin/tools/ github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod
	mkdir -p bin/sbom
	for program in $(PROGRAMS); do bin/tools/cyclonedx-gomod bin -json -std -noserial -notimestamp -version=v$(VERSION) -output=bin/sbom/$$program.cdx.json bin/$$program || exit; done

# Packages: what is installed, and what packages have besides. Whoever publishes
# them says who that is.
MAINTAINER ?= The oci-mainpid-hook maintainers <maintainers@oci-mainpid-hook.invalid>
HOMEPAGE   ?=
PACKAGE    := bin/package
DOCDIR     := $(PACKAGE)/usr/share/doc/oci-mainpid-hook
# README and the guides, laid out as here, so that their links lead somewhere.
PAGES      := README.md SECURITY.md ARCHITECTURE.md CONTRIBUTING.md

package-root: sbom
	rm -rf $(PACKAGE)
	$(MAKE) install DESTDIR=$(CURDIR)/$(PACKAGE) PREFIX=/usr
	find $(PACKAGE)/usr/share/man -type f -exec gzip -9n {} +
	$(INSTALL) -D -m 644 -t $(DOCDIR) packaging/copyright
	$(INSTALL) -D -m 644 -t $(DOCDIR)/sbom bin/sbom/*
	gzip -9nc CHANGELOG.md >$(DOCDIR)/changelog.gz
	chmod 644 $(DOCDIR)/changelog.gz
	$(INSTALL) -D -m 644 -t $(DOCDIR) $(PAGES)
	$(INSTALL) -D -m 644 -t $(DOCDIR)/docs docs/*.md
	$(INSTALL) -D -m 644 -t $(DOCDIR)/examples/early-service examples/early-service/README.md
	sed -i 's|(LICENSE)|(copyright)|; s|(CHANGELOG.md)|(changelog.gz)|' $(DOCDIR)/README.md
	printf -- '- semver: "%s-1"\n  date: %s\n  packager: "%s"\n  changes: [{note: "Version %s. See changelog.gz."}]\n  deb: {urgency: medium, distributions: [unstable]}\n' \
		'$(PACKAGE_VERSION)' "$$(date --utc --date=@$(SOURCE_DATE_EPOCH) +%FT%TZ)" '$(MAINTAINER)' '$(VERSION)' >bin/changelog.yaml

# Where zsh of Debian looks, and where others do.
deb: ZSHDIR := vendor-completions
rpm: ZSHDIR := site-functions

# In packages - begins the release, and 1.2.3~rc.1 comes before 1.2.3.
deb rpm: export PACKAGE_ARCH := $(or $(GOARCH),$(shell $(GO) env GOARCH))
deb rpm: export PACKAGE_VERSION := $(subst -,~,$(VERSION))
deb rpm: package-root
	rm -f bin/*_$(PACKAGE_ARCH).$@ bin/*.$(subst amd64,x86_64,$(subst arm64,aarch64,$(PACKAGE_ARCH))).$@
	[ -d $(PACKAGE)/usr/share/zsh/$(ZSHDIR) ] || mv $(PACKAGE)/usr/share/zsh/* $(PACKAGE)/usr/share/zsh/$(ZSHDIR)
	find $(PACKAGE) -exec touch --no-dereference --date=@$(SOURCE_DATE_EPOCH) {} +
	MAINTAINER='$(MAINTAINER)' HOMEPAGE='$(HOMEPAGE)' \
		env -u GOOS -u GOARCH $(TOOLS) nfpm package --config packaging/nfpm.yaml --packager $@ --target bin/

# Give SELinux the policy module, on this machine.
selinux:
	@command -v semodule >/dev/null || { echo "make selinux: semodule is missing: install policycoreutils" >&2; exit 1; }
	semodule --install=dist/selinux/oci_mainpid.cil
	[ ! -d /run/oci-mainpid ] || restorecon -R /run/oci-mainpid

reproducible:
	packaging/reproducible.sh

# Throw-away machines (test/sandbox/) need root.
demo: build man
	$(GO) run ./test/demo

test: check fuzz emulated reproducible e2e

# The cases of everywhere, on Debian unstable with podman 6 of experimental; and whether that
# boots with a kernel of its own.
unstable: build man
	$(GO) test -tags e2e,machines -count=1 -v ./test/sandbox -run '^Test(Whole)?Machine$$' -suites=unstable -whole-suite=unstable
	$(GO) test -tags e2e -count=1 -timeout 4h -v -p 1 -parallel 4 ./test/e2e -stacks=unstable -everywhere

# Much of what some tests do is to wait, for which more than the two run at once.
# At the end come the failures again, with what they said.
e2e: build man
	$(TOOLS) gotestsum --format standard-verbose -- -tags e2e -vet=off -count=1 -timeout 84m -p 1 -parallel 4 ./test/sandbox ./test/e2e

# Every case on every stack, but for those of machines: e2e deals many out to the stacks,
# and leaves out those that differ little from others.
everywhere: build man
	$(GO) test -tags e2e -count=1 -timeout 4h -v -parallel 4 ./test/e2e -everywhere

# What the unit's user and its container may try, see SECURITY.md; more often than
# e2e does where it is a race.
attack: build man
	$(GO) test -tags e2e -count=1 -timeout 60m -v ./test/e2e -run '^TestAttack$$' -race-time=20s

# Every combination of kind, Cgroup=, notification, runtime and history.
matrix: build man
	$(GO) test -tags e2e -count=1 -timeout 90m ./test/e2e -run '^TestMatrix$$' -matrix=0 -everywhere -v

# Every init of docs/without-systemd.md, with crun and runc, as root and as a user.
inits: build man
	$(GO) test -tags e2e -count=1 -timeout 90m ./test/e2e -run '^TestInits$$' -inits -everywhere -v

# Ansible over two machines, and Prometheus. CI runs what needs neither, TestFleetFiles.
fleet: build man
	$(GO) test -tags e2e,machines -count=1 -timeout 60m -v ./test/e2e -run '^TestFleet'

# What needs a kernel of its own, on machines that qemu runs; what judges the packages, the
# man pages and the completions, and Debian's policy for SELinux, whose installation takes
# minutes; and Debian 12. CI has no time for them.
machines: build man
	$(GO) test -tags e2e -count=1 -v ./test/sandbox -run '^TestMachine$$' -suites=bookworm
	$(GO) test -tags e2e,machines -count=1 -timeout 90m -v -p 1 ./test/sandbox ./test/e2e -run '^TestWhole|^TestSELinux$$|^TestCheckers$$|^TestDebiansTools$$|Debian12$$'

# SOAK steps on each of the two stacks, in each of which something goes wrong by
# chance; 200 units at once, with the project and without; and what 200 units of 20
# users are asked.
SOAK ?= 1000
soak: build man
	$(GO) test -tags e2e -count=1 -timeout 6h ./test/e2e -run '^TestSoak$$' -everywhere -soak=$(SOAK) -soak-seed=$$(date +%s) -v
	$(GO) test -tags e2e -count=1 -timeout 2h ./test/e2e -run '^TestMany' -many=200 -many-users=20 -many-rounds=3 -v

unit:
	$(GO) test ./...

# Every package is built and vetted for the processors CROSS; and the unit tests run
# for EMULATED, by qemu-user(1). s390x has its bytes the other way round, 386 has an
# int of 32 bits.
CROSS    ?= arm64 riscv64 s390x ppc64le 386 arm
EMULATED ?= arm64 s390x 386
cross: export GOARM := 7
cross:
	for arch in $(CROSS); do echo "$$arch:"; GOARCH=$$arch $(GO) build ./... && GOARCH=$$arch $(GO) vet -tags e2e,machines,vsock ./... || exit; done
	$(MAKE) emulated

# Of Debian 13: that of Debian 12 does not run Go's programs for 386. Needs root once.
QEMU := $(or $(OCI_MAINPID_CACHE),/var/cache/oci-mainpid-sandbox)/qemu-trixie
$(QEMU):
	command -v mmdebstrap >/dev/null || { apt-get update && apt-get install --yes --no-install-recommends mmdebstrap; }
	mkdir -p $(@D)
	rm -rf $@.partial
	PATH=/usr/sbin:/usr/bin:/sbin:/bin mmdebstrap --mode=root --variant=extract --include=qemu-user --format=directory trixie $@.partial
	mv $@.partial $@

# Tests that need what qemu-user has not got are skipped, and say so at the end, such as
# those that start their own program for a conmon: the kernel executes no program of
# another processor. What has no tests is not compiled, nor is anything vetted: check and
# cross do that.
emulated: $(QEMU)
	for arch in $(EMULATED); do case $$arch in arm64) qemu=aarch64 ;; 386) qemu=i386 ;; *) qemu=$$arch ;; esac; \
		echo "$$arch:"; $(TOOLS) gotestsum --format pkgname --format-hide-empty-pkg --raw-command -- \
			env OCI_MAINPID_EMULATED=1 GOARCH=$$arch $(GO) test -vet=off -parallel 8 -json -exec=$(QEMU)/usr/bin/qemu-$$qemu \
			$$($(GO) list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...) || exit; done

# Needs a kernel with AF_VSOCK and its module vsock_loopback, and systemd-notify.
vsock:
	$(GO) test -tags vsock -count=1 -v -run '^TestVsock$$' ./sdnotify

# Each fuzz test for FUZZTIME. What it finds, go puts into testdata/fuzz: a case.
# A number of inputs rather than a time: before Go 1.27, a time may end a test with
# "context deadline exceeded" though nothing was found (go.dev/issue/75804). And an
# input that reaches new code is not made smaller for a minute.
FUZZTIME ?= 20000x
fuzz:
	@grep -rEo --include='*_test.go' 'func Fuzz[A-Za-z]+' . | sed 's/:func / /' | while read -r file test; do \
		echo "$$test in $${file%/*}"; $(GO) test -run '^$$' -fuzz "^$$test\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x "$${file%/*}" || exit; done

# Unit tests that wait are parallel, more of them than there are processors.
check:
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt would change: $$unformatted"; exit 1; }
	$(GO) vet -tags e2e,machines,vsock ./...
	$(TOOLS) staticcheck -tags e2e,machines,vsock ./...
	$(GO) test -vet=off -parallel 8 ./...

# BENCH has flags; go run ./test/bench -h lists them.
bench: build man
	$(GO) run ./test/bench $(BENCH)

clean:
	rm -rf bin
