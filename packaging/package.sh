#!/bin/bash
# Builds what people install, for amd64 and arm64: a deb and an rpm of the agent and of the OCI hook, and a tarball with both
# programs. Static programs, the same bytes from the same commit with the same Go, wherever and whenever.
#
# Usage: packaging/package.sh OUT [ARCH…]
#   VERSION             what the programs say, default: what git describes
#   SOURCE_DATE_EPOCH   the time of every file, default: the commit's
set -euo pipefail
cd "$(dirname "$0")/.."
# What is written where must not depend on who builds: no umask, time zone or language.
umask 022
export LC_ALL=C TZ=UTC CGO_ENABLED=0

if (($# == 0)); then
	echo "usage: $0 OUT [ARCH…]" >&2
	exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
arches=("$@")
(($#)) || arches=(amd64 arm64)
GO=${GO:-go}

# git COMMAND…: nothing where this is no checkout.
described() { git "$@" 2>/dev/null || true; }
VERSION=${VERSION:-$(described describe --tags --always --dirty)}
VERSION=${VERSION:-unknown}
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(described log -1 --format=%ct)}
if [[ -z $SOURCE_DATE_EPOCH ]]; then
	echo "package: this is no git checkout; say of which time the files are: SOURCE_DATE_EPOCH=\$(date +%s) $0 …" >&2
	exit 2
fi

# Package managers compare versions. v1.2.3 is 1.2.3; commits after it are 1.2.3+N.gHASH, later than the release; v1.2.3-rc.1 is
# 1.2.3~rc.1, before it. Before the first release: 0.0.0~N.gHASH, N commits.
if [[ $VERSION =~ ^v?([0-9]+\.[0-9]+\.[0-9]+)(-([0-9]+)-(g[0-9a-f]+))?(-dirty)?$ ]]; then
	package_version=${BASH_REMATCH[1]}${BASH_REMATCH[3]:++${BASH_REMATCH[3]}.${BASH_REMATCH[4]}}${BASH_REMATCH[5]:++dirty}
elif [[ $VERSION =~ ^v?([0-9]+\.[0-9]+\.[0-9]+)-([0-9A-Za-z.-]+)$ ]]; then
	package_version=${BASH_REMATCH[1]}~${BASH_REMATCH[2]//-/.}
else
	count=$(described rev-list --count HEAD)
	package_version=0.0.0~${count:-0}.g${VERSION//[^0-9A-Za-z]/.}
fi
export PACKAGE_VERSION=$package_version PACKAGE_RELEASE=1

work=$(mktemp -d "${TMPDIR:-/tmp}/stoker-package-XXXXXX")
trap 'rm -rf "$work"' EXIT

# What is the same for both architectures.
"$GO" build -C packaging/nfpm -o "$work/nfpm" github.com/goreleaser/nfpm/v2/cmd/nfpm
build=(build -trimpath -ldflags "-s -w -X main.version=$VERSION")
"$GO" "${build[@]}" -o "$work/here" ./cmd/stoker # runs here, whatever this machine is
files=$work/files
mkdir -p "$files"/{man,completions}
"$work/here" config default >"$files/stoker.yaml"
"$work/here" man "$files/man"
gzip -9n "$files"/man/*
"$work/here" completion bash >"$files/completions/stoker.bash"
"$work/here" completion zsh >"$files/completions/_stoker"
"$work/here" completion fish >"$files/completions/stoker.fish"
cp packaging/systemd/stoker.service LICENSE LICENSES/*.txt packaging/deb/copyright "$files/"
cp packaging/apparmor/stoker "$files/apparmor"
cp packaging/deb/stoker.lintian-overrides "$files/lintian-overrides"
cp packaging/deb/stoker-hook.lintian-overrides "$files/hook-lintian-overrides"
cp -r packaging/deb packaging/rpm "$files/"
cp packaging/nfpm/*.yaml "$work/"
for page in "$files"/man/*; do
	name=${page##*/} section=${page%.gz}
	echo "  - {src: man/$name, dst: /usr/share/man/man${section##*.}/$name, type: doc, packager: rpm}"
done >"$work/man.yaml"
sed -i "/^  # Those of the rpm/r $work/man.yaml" "$work/stoker.yaml"
gzip -9nc CHANGELOG.md >"$files/changelog.gz"
cat >"$files/changelog.yaml" <<YAML
- semver: $package_version-$PACKAGE_RELEASE
  date: $(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
  packager: The stoker authors <stoker-profiler@users.noreply.github.com>
  deb: {urgency: medium, distributions: [unstable]}
  changes:
    - note: built from version $VERSION, whose changes are in changelog.gz
YAML

# licenses: those of everything that is linked into the programs, the standard library included. Their owners ask for it.
licenses() {
	local path version dir found file
	{
		GOOS=linux "$GO" list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/stoker ./cmd/stoker-hook | sort -u
		echo "go $("$GO" env GOVERSION) $("$GO" env GOROOT)"
	} | while read -r path version dir; do
		found=
		for file in "$dir"/LICENSE* "$dir"/LICENCE* "$dir"/COPYING* "$dir"/NOTICE*; do
			[[ -f $file ]] || continue
			found=yes
			printf '%s\n%s %s: %s\n\n' "$(printf '=%.0s' {1..100})" "$path" "$version" "${file##*/}"
			cat "$file"
			echo
		done
		if [[ -z $found ]]; then
			echo "package: no license found in module $path $version" >&2
			return 1
		fi
	done
}
licenses | gzip -9n >"$files/third-party-licenses.gz"

for arch in "${arches[@]}"; do
	mkdir -p "$files/bin"
	for program in stoker stoker-hook; do
		GOARCH=$arch "$GO" "${build[@]}" -o "$files/bin/$program" "./cmd/$program"
	done
	for package in stoker stoker-hook; do
		for format in deb rpm; do
			(cd "$files" && ARCH=$arch "$work/nfpm" package --config "$work/$package.yaml" --packager "$format" --target "$out/" >"$work/log") || {
				cat "$work/log" >&2
				exit 1
			}
		done
	done

	name=stoker-$package_version-linux-$arch
	mkdir -p "$work/tar/$name"/{man,completions}
	cp "$files"/bin/* "$files"/{stoker.yaml,stoker.service,LICENSE,GPL-2.0-only.txt,BSD-2-Clause.txt,third-party-licenses.gz} CHANGELOG.md "$work/tar/$name/"
	cp "$files"/man/* "$work/tar/$name/man/"
	cp "$files"/completions/* "$work/tar/$name/completions/"
	tar -C "$work/tar" --sort=name --mtime="@$SOURCE_DATE_EPOCH" --owner=0 --group=0 --numeric-owner -cf - "$name" | gzip -9n >"$out/$name.tar.gz"
	rm -r "$files/bin" "$work/tar"
done
(cd "$out" && sha256sum -- *.deb *.rpm *.tar.gz >SHA256SUMS)
