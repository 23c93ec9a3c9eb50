"""Programs that use the same files of a workspace at once; the directory is the argument.

Everything here holds on a local file system. A failed check names the test and ends the program.
"""
import mmap, os, shutil, sqlite3, subprocess, sys, tarfile, time, traceback

os.chdir(sys.argv[1])


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def unbuffered(path, mode):
    return open(path, mode, buffering=0)


def same(seen, expected):
    assert seen == expected, (len(seen), len(expected), seen.count(0), seen[:40], expected[:40])


def start(code, *arguments):
    """Another program."""
    imports = "import mmap, os, sqlite3, sys, time\n"
    return subprocess.Popen([sys.executable, "-c", imports + code, *map(str, arguments)])


def all_end(programs):
    codes = [program.wait() for program in programs]
    assert codes == [0] * len(codes), codes


def a_log_is_read_while_it_is_written():
    lines = b"".join(b"line %d\n" % n for n in range(100))
    writer = start("""
file = open("log", "wb", buffering=0)
for n in range(100):
    file.write(b"line %d\\n" % n)
    time.sleep(.005)
""")
    while not os.path.exists("log"):
        time.sleep(.005)
    reads = 0
    while writer.poll() is None:
        assert lines.startswith(read("log"))
        reads += 1
    all_end([writer])
    assert reads > 3, reads
    same(read("log"), lines)


def many_append_to_one_file():
    write("appended", b"")
    all_end([start("""
for n in range(40):
    with open("appended", "ab", buffering=0) as file:
        file.write(b"%s %d\\n" % (sys.argv[1].encode(), n))
""", k) for k in range(8)])
    expected = sorted(b"%d %d" % (k, n) for k in range(8) for n in range(40))
    same(sorted(read("appended").splitlines()), expected)


def many_append_while_others_list():
    os.mkdir("listed")
    for n in range(20):
        write(f"listed/{n}", b"1")
    write("listed/log", b"")
    writers = [start("""
for n in range(60):
    with open("listed/log", "ab", buffering=0) as file:
        file.write(b"%s %d\\n" % (sys.argv[1].encode(), n))
    if n % 20 == 0:
        # As long as the kernel believes what it knows of a file.
        time.sleep(1)
""", k) for k in range(2)]
    reader = start("""
while True:
    for entry in os.scandir("listed"):
        entry.stat()
""")
    all_end(writers)
    reader.kill()
    reader.wait()
    same(sorted(read("listed/log").splitlines()), sorted(b"%d %d" % (k, n) for k in range(2) for n in range(60)))


def each_has_a_part_of_a_file():
    size = 50_000
    for name, flags in (("parts", "os.O_RDWR"), ("new-parts", "os.O_RDWR | os.O_CREAT")):
        if "CREAT" not in flags:
            write(name, bytes(size * 4))
        all_end([start(f"""
k, size = int(sys.argv[1]), {size}
for at in range(0, size, 5000):
    file = os.open("{name}", {flags})
    os.pwrite(file, bytes([k + 1]) * 5000, k * size + at)
    os.close(file)
""", k) for k in range(4)])
        same(read(name), b"".join(bytes([k + 1]) * size for k in range(4)))


def a_large_file_is_read_while_it_is_written():
    part = os.urandom(4_000_000)
    write("/tmp/part", part)
    writer = start("""
file = open("large", "wb", buffering=0)
for n in range(10):
    data = open("/tmp/part", "rb").read()
    while data:
        data = data[file.write(data):]
""")
    while not os.path.exists("large"):
        time.sleep(.005)
    while writer.poll() is None:
        assert (part * 10).startswith(read("large"))
    all_end([writer])
    same(read("large"), part * 10)


def a_directory_is_renamed_around_open_files():
    os.makedirs("before/sub")
    write("before/old", b"old")
    new, below = unbuffered("before/new", "wb"), unbuffered("before/sub/new", "wb")
    old, empty = unbuffered("before/old", "r+b"), unbuffered("before/empty", "wb")
    new.write(b"first ")
    below.write(b"first ")
    old.write(b"OLD and more")
    os.rename("before", "after")
    new.write(b"second")
    below.write(b"second")
    old.write(b"!")
    for file in (new, below, old, empty):
        file.close()
    assert sorted(os.listdir("after")) == ["empty", "new", "old", "sub"], os.listdir("after")
    same(read("after/new"), b"first second")
    same(read("after/sub/new"), b"first second")
    same(read("after/old"), b"OLD and more!")
    same(read("after/empty"), b"")
    assert not os.path.exists("before")


def a_file_is_renamed_while_it_is_written():
    file = unbuffered("name1", "wb")
    file.write(b"one ")
    os.rename("name1", "name2")
    file.write(b"two ")
    os.rename("name2", "name3")
    write("name1", b"new")
    file.write(b"three")
    file.close()
    same(read("name3"), b"one two three")
    same(read("name1"), b"new")
    assert not os.path.exists("name2")


def a_file_is_replaced_while_it_is_open():
    write("replaced", b"old content")
    reader, writer = unbuffered("replaced", "rb"), unbuffered("replaced", "r+b")
    writer.write(b"OLD")
    new = unbuffered("replaced.new", "wb")
    new.write(b"new")
    os.rename("replaced.new", "replaced")
    new.write(b"er")
    same(read("replaced"), b"newer")
    same(reader.read(), b"OLD content")
    for file in (writer, reader, new):
        file.close()
    same(read("replaced"), b"newer")


def a_file_is_removed_while_it_is_open():
    file = unbuffered("removed", "w+b")
    file.write(b"abc")
    os.unlink("removed")
    file.write(b"def")
    write("removed", b"another")
    file.seek(0)
    same(file.read(), b"abcdef")
    file.close()
    same(read("removed"), b"another")


def a_new_file_is_seen_at_once():
    os.mkdir("seen")
    files = {name: unbuffered(f"seen/{name}", "wb") for name in ("written", "empty")}
    files["written"].write(b"content")
    all_end([start("""
assert sorted(os.listdir("seen")) == ["empty", "written"], os.listdir("seen")
assert os.stat("seen/written").st_size == 7, os.stat("seen/written").st_size
assert open("seen/written", "rb").read() == b"content"
assert open("seen/empty", "rb").read() == b""
""")])
    try:
        os.rmdir("seen")
    except OSError as error:
        assert error.strerror == "Directory not empty", error
    else:
        raise AssertionError("a directory with files was removed")
    for file in files.values():
        file.close()
    same(read("seen/written"), b"content")


def a_file_stays_open_beyond_what_is_cached_of_it():
    files = [unbuffered(f"late{n}", "wb") for n in range(3)]
    for file in files:
        file.write(b"abc")
    # Longer than s3fs keeps attributes (stat_cache_expire=5).
    time.sleep(6)
    assert os.stat("late0").st_size == 3
    os.utime("late1", (1e9, 1e9))
    os.unlink("late2")
    for file in files:
        file.write(b"d")
        file.close()
    same(read("late0"), b"abcd")
    same(read("late1"), b"abcd")
    assert not os.path.exists("late2")


def a_new_file_is_made_once():
    file = unbuffered("once", "xb")
    try:
        open("once", "xb")
    except FileExistsError:
        pass
    else:
        raise AssertionError("made twice")
    file.write(b"1")
    file.close()
    same(read("once"), b"1")


def what_is_written_through_a_mapping_stays():
    write("mapped", bytes(10_000))
    all_end([start("""
file = os.open("mapped", os.O_RDWR)
memory = mmap.mmap(file, 10_000)
os.close(file)
memory[:5] = b"hello"
memory.flush()
memory[9000:9003] = b"end"
""")])
    same(read("mapped"), b"hello" + bytes(8995) + b"end" + bytes(997))


def emptied_by_a_second_open():
    first = unbuffered("emptied", "wb")
    first.write(b"0123456789")
    second = unbuffered("emptied", "wb")
    second.write(b"xy")
    first.write(b"Z")
    first.close()
    second.close()
    same(read("emptied"), b"xy" + bytes(8) + b"Z")


def times_survive():
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDWR, os.O_RDWR | os.O_TRUNC):
        file = os.open("times", flags)
        os.write(file, b"abcde")
        os.utime(file, (1e9, 1e9))
        os.close(file)
        same(read("times"), b"abcde")
        assert os.stat("times").st_mtime == 1e9, (flags, os.stat("times").st_mtime)


def databases():
    for mode in ("delete", "wal"):
        database = sqlite3.connect(f"{mode}.sqlite")
        database.execute(f"pragma journal_mode={mode}")
        database.execute("create table t (k, n)")
        database.commit()
        all_end([start(f"""
database = sqlite3.connect("{mode}.sqlite", timeout=60)
for n in range(10):
    with database:
        database.execute("insert into t values (?, ?)", (sys.argv[1], n))
""", k) for k in range(3)])
        assert database.execute("select count(*) from t").fetchone() == (30,)
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        database.close()


def trees_are_copied_packed_and_moved():
    os.mkdir("tree")
    expected = {str(n): b"%d\n" % n * n for n in range(20)}
    for name, data in expected.items():
        write(f"tree/{name}", data)
    shutil.copytree("tree", "copy")
    with tarfile.open("tree.tar", "w") as tar:
        tar.add("tree")
    with tarfile.open("tree.tar") as tar:
        tar.extractall("unpacked")
    os.rename("unpacked/tree", "moved")
    for tree in ("tree", "copy", "moved"):
        assert {name: read(f"{tree}/{name}") for name in os.listdir(tree)} == expected, tree


TESTS = [
    a_log_is_read_while_it_is_written,
    many_append_to_one_file,
    many_append_while_others_list,
    each_has_a_part_of_a_file,
    a_large_file_is_read_while_it_is_written,
    a_directory_is_renamed_around_open_files,
    a_file_is_renamed_while_it_is_written,
    a_file_is_replaced_while_it_is_open,
    a_file_is_removed_while_it_is_open,
    a_new_file_is_seen_at_once,
    a_file_stays_open_beyond_what_is_cached_of_it,
    a_new_file_is_made_once,
    what_is_written_through_a_mapping_stays,
    emptied_by_a_second_open,
    times_survive,
    databases,
    trees_are_copied_packed_and_moved,
]
for test in TESTS:
    try:
        test()
    except BaseException:
        print(f"failed: {test.__name__}")
        traceback.print_exc(file=sys.stdout)
        sys.exit(1)
    print(f"ok: {test.__name__}", flush=True)
