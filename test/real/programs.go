package main

// program is one row of the table: what runs in a container, for as long as it lives.
type program struct {
	name     string
	packages []string // Debian's, that the tree needs for it
	// script is run by sh as root in the container and does not end. It may use /src, with sources and programs of this repository.
	script string
	// busy is the name of the process whose stacks gdb is to unwind; empty: they end too soon to be stopped a thousand times.
	busy string
}

// programs are real ones, as Debian ships them: an interpreter of a language is none of them, for its functions are not C's.
var programs = []program{
	{"postgres, pgbench", []string{"postgresql", "postgresql-contrib"}, `
useradd -m pg 2>/dev/null; B=$(echo /usr/lib/postgresql/*/bin); mkdir -p /tmp/db && chown pg /tmp/db; cd /tmp
setpriv --reuid pg --regid pg --clear-groups $B/initdb -D /tmp/db -A trust >/dev/null
setpriv --reuid pg --regid pg --clear-groups $B/postgres -D /tmp/db -k /tmp -c listen_addresses= -c fsync=off &
until $B/pg_isready -q -h /tmp; do sleep 0.2; done
$B/createdb -h /tmp -U pg b; $B/pgbench -q -h /tmp -U pg -i -s 5 b 2>/dev/null
exec $B/pgbench -h /tmp -U pg -c 4 -j 2 -T 100000 b >/dev/null`, "postgres: pg b"},
	{"nginx, wrk", []string{"nginx-light", "wrk"}, `
cat >/tmp/n.conf <<'E'
user root; worker_processes 2; daemon off; pid /tmp/n.pid; error_log /tmp/n.err;
events { worker_connections 256; }
http { access_log /tmp/n.log; gzip on; gzip_types *; server { listen 127.0.0.1:18473; location / { root /usr/share/common-licenses; } } }
E
nginx -c /tmp/n.conf & sleep 1
while :; do wrk -q -t1 -c16 -d60 -H 'Accept-Encoding: gzip' http://127.0.0.1:18473/GPL-3 >/dev/null 2>&1 || wrk -t1 -c16 -d60 -H 'Accept-Encoding: gzip' http://127.0.0.1:18473/GPL-3 >/dev/null; done`, "nginx: worker process"},
	{"redis, redis-benchmark", []string{"redis-server", "redis-tools"}, `
redis-server --port 0 --unixsocket /tmp/r.sock --save '' --daemonize no >/dev/null & sleep 1
while :; do redis-benchmark -s /tmp/r.sock -q -n 200000 -P 8 -t set,get,lpush,sadd,zadd,lrange_100 >/dev/null; done`, "redis-server"},
	{"sqlite3", []string{"sqlite3"}, `
while :; do sqlite3 :memory: "create table t(a,b,c); with recursive n(i) as (select 1 union all select i+1 from n where i<200000)
insert into t select i, hex(randomblob(8)), i%97 from n; create index x on t(b); select c,count(*),sum(length(b)) from t group by c order by 2;
select count(*) from t x join t y on x.a=y.a+1 where y.b like '%FF%';" >/dev/null; done`, ""},
	{"openssl speed", []string{"openssl"}, `exec openssl speed -seconds 100000 -evp aes-256-gcm >/dev/null 2>&1`, "openssl"},
	{"openssl, RSA and ECDSA", []string{"openssl"}, `
openssl speed -seconds 100000 rsa2048 >/dev/null 2>&1 & exec openssl speed -seconds 100000 ecdsap256 >/dev/null 2>&1`, "openssl"},
	{"g++ -O2", []string{"g++"}, `
echo '#include <regex>
#include <map>
#include <iostream>
int main(int c, char **v) { std::map<std::string, std::regex> m; m[v[0]] = std::regex(v[0]); std::cout << m.size() + c; }' >/tmp/a.cc
while :; do g++ -O2 -o /tmp/a /tmp/a.cc; done`, ""},
	{"git", []string{"git"}, `
mkdir /tmp/g && cd /tmp/g && git init -q . && git config user.email a@b && git config user.name a && git config gc.auto 0
for i in $(seq 300); do for f in 1 2 3 4 5 6; do echo "$i $f $RANDOM" >>f$f; cat /usr/share/common-licenses/GPL-$((i%3+1)) >g$f 2>/dev/null; done; git add . && git commit -qm $i; done
while :; do git log -p >/dev/null; git repack -qadf; git blame f1 >/dev/null; done`, ""},
	{"ffmpeg, H.264", []string{"ffmpeg"}, `
exec ffmpeg -v error -f lavfi -i testsrc2=size=640x360:rate=25 -f lavfi -i sine -c:v libx264 -preset fast -c:a aac -f null - </dev/null`, ""},
	{"xz -9", []string{"xz-utils"}, `cat /usr/lib/git-core/git /usr/lib/gcc/*/*/cc1plus >/tmp/x; while :; do xz -9 -T1 -c /tmp/x >/dev/null; done`, "xz"},
	{"musl, static", nil, `exec /src/calls-musl-static`, "calls-musl-stat"},
	{"musl, dynamic", []string{"musl"}, `exec /src/calls-musl`, "calls-musl"},
}
