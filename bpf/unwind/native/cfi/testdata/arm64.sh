#!/bin/bash
# Makes arm64.so and arm64-pac.so from arm64.c and arm64.S, with clang-19 and lld-19. They are committed because no package
# that the tests need otherwise can link for arm64.
set -euo pipefail
cd "$(dirname "$0")"
lld=${LLD:-ld.lld-19}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
for kind in "" -pac; do
	protection=none
	[[ $kind = -pac ]] && protection=standard
	for source in arm64.c arm64.S; do
		clang-19 -target aarch64-linux-gnu -mbranch-protection=$protection -O2 -ffreestanding -fPIC -fno-stack-protector -fasynchronous-unwind-tables \
			-c -o "$out/$source.o" "$source"
	done
	"$lld" -shared --eh-frame-hdr --build-id=none --allow-shlib-undefined -z max-page-size=4096 -z separate-code --strip-debug -e _start -o "arm64$kind.so" "$out/arm64.c.o" "$out/arm64.S.o"
done
