# Run by gdb within main.go: stops a process at random moments and writes what gdb knows, one JSON text a line.
import base64, json, os, random, subprocess

pid, count, out = int(os.environ["STOP_PID"]), int(os.environ["STOP_COUNT"]), os.environ["STOP_OUT"]
for command in ("set pagination off", "set confirm off", "set height 0", "set backtrace past-main on", "set backtrace limit 300",
                "handle all nostop noprint pass", "handle SIGINT stop print nopass", "attach %d" % pid):
    gdb.execute(command, to_string=True)
names = ["rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp"] + ["r%d" % i for i in range(8, 16)]


def areas():
    with open("/proc/%d/maps" % pid) as maps:
        for line in maps:
            start, end = line.split()[0].split("-")
            yield int(start, 16), int(end, 16)


with open(out, "w") as lines, open("/proc/%d/mem" % pid, "rb", 0) as memory:
    for _ in range(count):
        # Not a thread of ours: gdb holds Python's lock while the program runs.
        stopper = subprocess.Popen(["sh", "-c", "sleep %f; kill -INT %d" % (random.uniform(0.001, 0.02), pid)])
        gdb.execute("continue", to_string=True)
        stopper.wait()
        frame = gdb.newest_frame()
        value = lambda name: int(frame.read_register(name)) & (1 << 64) - 1
        registers = [value(n) for n in names]
        pcs, f = [], frame
        while f is not None and f.is_valid() and len(pcs) < 300:
            if f.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
                pcs.append(f.pc())
            try:
                f = f.older()
            except gdb.error:
                break
        low = registers[7] - 128
        end = next((end for start, end in areas() if start <= low < end), low)
        memory.seek(low)
        stack = memory.read(min(end - low, 1 << 20))
        lines.write(json.dumps({"pc": frame.pc(), "registers": registers, "frames": pcs, "stack": base64.b64encode(stack).decode()}) + "\n")
gdb.execute("detach", to_string=True)
