//! Programs that use the same files of a workspace at once. s3fs 1.90 left alone loses what one of them has
//! written when another opens the file, and new files when their directory is renamed.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use sandyard_types::Cache;
use sha2::{Digest as _, Sha256};

use super::rpc::TestUser;
use super::s3::BUCKET;
use super::sandbox::TestSandbox;

const PROGRAM: &str = include_str!("sharing.py");

#[test]
#[ignore = "needs docker and minio"]
fn programs_share_files_as_on_a_local_disk() -> anyhow::Result<()> {
    for cache in [Cache::Disk { limit_mib: 1024 }, Cache::Tmpfs { size_mib: 300 }] {
        let sandbox = TestSandbox::start(&[])?;
        let mut call = sandbox.workspace();
        call.cache = cache;
        sandbox.mount(vec![call])?;
        let script = format!("python3 - /workspace <<'END'\n{PROGRAM}\nEND");
        let finished = sandbox.run(TestUser::User, &script)?;
        anyhow::ensure!(finished.exit_code == 0, "{}\n{}", finished.stdout, finished.stderr);
        // What is read inside is what the store has.
        let sums = "cd /workspace && find . -type f -printf '%P\\n' | xargs sha256sum";
        let sums = sandbox.run(TestUser::User, sums)?.stdout;
        let mut files = 0;
        for line in sums.lines() {
            let (sum, file) = line.split_once("  ").context("a line of sha256sum")?;
            let object = sandbox.store.get(&sandbox.key(file))?;
            let object = object.with_context(|| format!("{file} is not in the store"))?;
            assert_eq!(hex::encode(Sha256::digest(&object)), sum, "{file}");
            files += 1;
        }
        assert!(files > 80, "{sums}");
    }
    Ok(())
}

/// A program that has a file open, lists its directory until the test holds the store's answer about the
/// file, writes the file meanwhile, and appends to it once the kernel asks for its length again.
const LISTING: &str = r#"
import os, threading, time
os.chdir("/workspace")
with open("f", "wb") as file: file.write(b"one\n")
file = open("f", "r+b", buffering=0)
file.seek(4)
held = threading.Event()
def list():
    while not held.is_set(): os.listdir(".")
lister = threading.Thread(target=list)
lister.start()
print("listing", flush=True)
input()
held.set()
file.write(b"two\n")
file.close()
print("written", flush=True)
lister.join()
# As long as the kernel believes what it knows of a file.
time.sleep(1.1)
file = os.open("f", os.O_WRONLY | os.O_APPEND)
os.write(file, b"three\n")
os.close(file)
"#;

#[test]
#[ignore = "needs docker and minio"]
fn a_listing_does_not_bring_an_old_length_back() -> anyhow::Result<()> {
    let sandbox = TestSandbox::start(&[])?;
    let store = sandbox.store.address();
    let mut forwarder = Forwarder::start(store, format!("HEAD /{BUCKET}/{}", sandbox.key("f")))?;
    let mut call = sandbox.workspace();
    call.endpoint = format!("http://{}", forwarder.address);
    sandbox.mount(vec![call])?;
    let pipe = "rm -f /tmp/go && mkfifo /tmp/go";
    sandbox.run(TestUser::User, pipe)?.success()?;
    let script = format!("exec 3<>/tmp/go; python3 -c '{LISTING}' <&3");
    let mut program = sandbox.start_command(TestUser::User, &script)?;
    program.until("listing")?;
    forwarder.hold_next();
    forwarder.held.recv_timeout(Duration::from_secs(20)).context("s3fs asks about the file")?;
    sandbox.run(TestUser::User, "echo > /tmp/go")?.success()?;
    program.until("written")?;
    forwarder.let_go.send(())?;
    program.finish()?.success()?;
    let object = sandbox.store.get(&sandbox.key("f"))?;
    assert_eq!(object.as_deref(), Some(&b"one\ntwo\nthree\n"[..]));
    Ok(())
}

/// A forwarder to the store that can keep back one answer.
struct Forwarder {
    address: SocketAddr,
    /// Told of an answer that is kept back.
    held: Receiver<()>,
    let_go: Sender<()>,
    hold: Arc<Mutex<Option<Hold>>>,
    next: Option<Hold>,
}

struct Hold {
    /// What the request begins with.
    request: Vec<u8>,
    held: Sender<()>,
    let_go: Receiver<()>,
}

impl Forwarder {
    fn start(store: SocketAddr, request: String) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((store.ip(), 0))?;
        let address = listener.local_addr()?;
        let (held, told) = channel();
        let (let_go, going) = channel();
        let hold = Arc::new(Mutex::new(None::<Hold>));
        let shared = Arc::clone(&hold);
        // Ends with the test's process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(store) else { return };
                let hold = Arc::clone(&shared);
                thread::spawn(move || forward(&client, &server, &hold));
            }
        });
        let next = Some(Hold { request: request.into_bytes(), held, let_go: going });
        Ok(Self { address, held: told, let_go, hold, next })
    }

    fn hold_next(&mut self) {
        *self.hold.lock().expect("no panic") = self.next.take();
    }
}

/// Passes both directions on; s3fs sends one request after the other on a connection.
fn forward(client: &TcpStream, server: &TcpStream, hold: &Mutex<Option<Hold>>) {
    let pending = Mutex::new(None::<Hold>);
    thread::scope(|scope| {
        scope.spawn(|| {
            pass_on(client, server, |data| {
                let mut hold = hold.lock().expect("no panic");
                if hold.as_ref().is_some_and(|hold| data.starts_with(&hold.request)) {
                    *pending.lock().expect("no panic") = hold.take();
                }
            });
        });
        pass_on(server, client, |_| {
            if let Some(hold) = pending.lock().expect("no panic").take() {
                // A test that has failed is not there any more.
                let _ = hold.held.send(());
                let _ = hold.let_go.recv();
            }
        });
    });
}

fn pass_on(mut from: &TcpStream, mut to: &TcpStream, mut look: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        look(&buffer[..length]);
        if to.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    // Closed already, where this fails.
    let _ = to.shutdown(Shutdown::Write);
}
