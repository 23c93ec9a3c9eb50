//! Watching directories (executor 5.4): one inotify descriptor a watcher. A stream's watcher lives as
//! long as its client listens, one with an id until it is removed.

mod tree;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use sandyard_contract::connect::{Code, ConnectError};
use sandyard_contract::rpc::filesystem::{
    CreateWatcherRequest, CreateWatcherResponse, FilesystemEvent, GetWatcherEventsRequest,
    GetWatcherEventsResponse, RemoveWatcherRequest, RemoveWatcherResponse, WatchDirRequest,
    WatchDirResponse, watch_dir_response,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::super::connect::{MessageSink, RpcCall};
use super::super::rights::{Rights, as_user};
use super::super::tasks::lock;
use super::super::{access, pool};
use super::{FilesystemContext, missing, with_user};
use tree::{WatchError, WatchOptions, WatchTree};

/// File systems whose other users make changes that the kernel here does not see: NFS, CIFS, SMB,
/// SMB 2, FUSE.
const NETWORK: [u32; 5] = [0x6969, 0xFF53_4D42, 0x517B, 0xFE53_4D42, 0x6573_5546];

/// All watchers of a daemon.
#[derive(Default)]
pub(in super::super) struct Watchers {
    by_id: Mutex<HashMap<String, Watcher>>,
    /// Those of streams too.
    all: Mutex<Vec<Weak<Watch>>>,
}

impl Watchers {
    /// Lets the watchers of a directory collect what was just done in it before more is done: those
    /// that are recursive watch what is new there from its first moment (executor 11.27), and the
    /// kernel does not make one event of two (executor 5.4). Blocks.
    pub(in super::super) fn catch_up(&self, directory: &Path) {
        let all: Vec<Arc<Watch>> = {
            let mut all = lock(&self.all);
            all.retain(|watch| watch.strong_count() > 0);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        if all.is_empty() {
            return;
        }
        // What is gone again needs no watch.
        let Some(Ok(directory)) = directory.to_str().map(access::real_path) else { return };
        let directory = Path::new(&directory);
        for watch in all.iter().filter(|watch| watch.covers(directory)) {
            watch.collect_for_others();
        }
    }

    fn find(&self, id: &str) -> Result<Arc<Watch>, ConnectError> {
        let by_id = lock(&self.by_id);
        by_id.get(id).map(|watcher| Arc::clone(&watcher.watch)).ok_or_else(|| unknown(id))
    }
}

fn unknown(id: &str) -> ConnectError {
    ConnectError::new(Code::NotFound, format!("watcher '{id}' not found"))
}

/// A watcher with an id.
struct Watcher {
    watch: Arc<Watch>,
    /// Dropped, it ends the task that collects events.
    _stop: oneshot::Sender<()>,
    /// Closed when that task let go of everything.
    ended: oneshot::Receiver<()>,
}

/// A watched directory and what happened in it.
struct Watch {
    ready: AsyncFd<Arc<OwnedFd>>,
    /// Where the directory really is.
    place: PathBuf,
    is_recursive: bool,
    /// What is watched later is watched with them too.
    rights: Rights,
    state: Mutex<WatchState>,
    /// Told when somebody else than its own task has collected.
    collected: Notify,
}

struct WatchState {
    tree: WatchTree,
    events: Vec<FilesystemEvent>,
    failure: Option<WatchError>,
}

impl Watch {
    async fn open(call: RpcCall, path: String, options: Asked) -> Result<Arc<Self>, ConnectError> {
        let daemon = Arc::clone(&call.daemon);
        let is_recursive = options.recursive;
        let (tree, place, rights) = with_user(call, move |context| {
            let (tree, place) = start(&context, &path, &options)?;
            Ok((tree, place, context.rights))
        })
        .await?;
        let descriptor = tree.descriptor();
        // SAFETY: its number does not change, and it is open for as long as somebody holds it.
        #[allow(unsafe_code)]
        let ready = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }
            .map_err(|error| internal(&WatchError::Read(error.into())))?;
        let state = Mutex::new(WatchState { tree, events: Vec::new(), failure: None });
        let collected = Notify::new();
        let watch = Arc::new(Self { ready, place, is_recursive, rights, state, collected });
        let mut all = lock(&daemon.watchers.all);
        all.retain(|watch| watch.strong_count() > 0);
        all.push(Arc::downgrade(&watch));
        Ok(watch)
    }

    fn covers(&self, directory: &Path) -> bool {
        directory == self.place || (self.is_recursive && directory.starts_with(&self.place))
    }

    /// Waits until there may be something that its own task has not taken yet: in the descriptor, or collected
    /// by others.
    async fn news(&self) -> io::Result<()> {
        tokio::select! {
            // Before what it says is read: what comes after that makes it ready again.
            ready = self.ready.readable() => ready.map(|mut ready| ready.clear_ready()),
            () = self.collected.notified() => Ok(()),
        }
    }

    /// Collects what happened until now and leaves it to the watch's own task. That task has to be told: a
    /// descriptor that was emptied before its readiness was seen does not become ready. Blocks.
    fn collect_for_others(&self) {
        drop(self.collect());
        self.collected.notify_one();
    }

    /// Collects what happened until now, up to a failure, which stays. Blocks.
    fn collect(&self) -> MutexGuard<'_, WatchState> {
        let mut state = lock(&self.state);
        let WatchState { tree, events, failure } = &mut *state;
        if failure.is_none() {
            let drained = as_user(&self.rights, || tree.drain(events));
            *failure = drained.unwrap_or_else(|error| Err(WatchError::Read(error))).err();
        }
        state
    }

    /// Collects events until a failure, or until it is stopped. Nothing that it began holds the watch then.
    async fn follow(self: &Arc<Self>, stopped: &mut oneshot::Receiver<()>) {
        loop {
            let ready = tokio::select! {
                _ = &mut *stopped => return,
                ready = self.news() => ready,
            };
            if let Err(error) = ready {
                lock(&self.state).failure = Some(WatchError::Read(error));
                break;
            }
            let watch = Arc::clone(self);
            if pool::run(move || watch.collect().failure.is_some()).await {
                break;
            }
        }
        // The failure stays to be asked for.
        drop(stopped.await);
    }
}

/// What the two requests have in common.
struct Asked {
    recursive: bool,
    include_entry: bool,
    allow_network_mounts: bool,
}

/// Checks in the contract's order and begins to watch.
fn start(
    context: &FilesystemContext,
    path: &str,
    asked: &Asked,
) -> Result<(WatchTree, PathBuf), ConnectError> {
    let path = context.resolve(path)?;
    let found = access::metadata(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => missing(&path),
        _ => context.failed("look for", &path, &error),
    })?;
    if !found.is_dir() {
        let message = format!("'{path}' is not a directory");
        return Err(ConnectError::new(Code::InvalidArgument, message));
    }
    let directory =
        access::hold_directory(&path).map_err(|error| context.failed("open", &path, &error))?;
    if !asked.allow_network_mounts {
        let system = rustix::fs::fstatfs(directory)
            .map_err(|error| context.failed("look at the file system of", &path, &error.into()))?;
        // Magic numbers have 32 bits, whatever the field's type.
        if NETWORK.contains(&(system.f_type as u32)) {
            let message = format!(
                "'{path}' is on a network file system (NFS, SMB, FUSE), where only changes made in \
                 this sandbox are seen: allow_network_mounts watches it all the same"
            );
            return Err(ConnectError::new(Code::InvalidArgument, message));
        }
    }
    let place = access::real_path(&path)
        .map_err(|error| context.failed("find the place of", &path, &error))?;
    let options = WatchOptions { recursive: asked.recursive, include_entry: asked.include_entry };
    let tree = WatchTree::watch(path, options).map_err(|error| match &error {
        WatchError::Directory { path, source } => context.failed("watch", path, source),
        _ => internal(&error),
    })?;
    Ok((tree, place.into()))
}

fn internal(error: &WatchError) -> ConnectError {
    ConnectError::new(Code::Internal, error.to_string())
}

/// The watcher of a stream, torn down with it.
pub(in super::super) struct WatchEvents(Option<Arc<Watch>>);

impl Drop for WatchEvents {
    fn drop(&mut self) {
        // Closing the descriptor waits in the kernel, the longer the more it watched.
        let watch = self.0.take();
        drop(pool::run(move || drop(watch)));
    }
}

pub(in super::super) async fn watch_dir(
    call: &RpcCall,
    request: WatchDirRequest,
) -> Result<WatchEvents, ConnectError> {
    let WatchDirRequest { path, recursive, include_entry, allow_network_mounts } = request;
    let asked = Asked { recursive, include_entry, allow_network_mounts };
    Ok(WatchEvents(Some(Watch::open(call.clone(), path, asked).await?)))
}

impl WatchEvents {
    /// Sends start, then what happens, with keepalives in between (executor 2.6), until a failure.
    pub(in super::super) async fn send(self, sink: MessageSink) -> Result<(), ConnectError> {
        use watch_dir_response::{Event, KeepAlive, StartEvent};
        let message = |event| WatchDirResponse { event: Some(event) };
        sink.send(&message(Event::Start(StartEvent {}))).await?;
        let Some(watch) = &self.0 else { return Ok(()) };
        let mut keepalive = Instant::now() + sink.keepalive;
        loop {
            let collecting = Arc::clone(watch);
            let (events, failure) = pool::run(move || {
                let mut state = collecting.collect();
                (std::mem::take(&mut state.events), state.failure.as_ref().map(internal))
            })
            .await;
            for event in events {
                sink.send(&message(Event::Filesystem(event))).await?;
                keepalive = Instant::now() + sink.keepalive;
            }
            if let Some(failure) = failure {
                return Err(failure);
            }
            match tokio::time::timeout_at(keepalive, watch.news()).await {
                Ok(ready) => ready.map_err(|error| internal(&WatchError::Read(error)))?,
                Err(_) => {
                    sink.send(&message(Event::Keepalive(KeepAlive {}))).await?;
                    keepalive = Instant::now() + sink.keepalive;
                }
            }
        }
    }
}

pub(in super::super) async fn create_watcher(
    call: RpcCall,
    request: CreateWatcherRequest,
) -> Result<CreateWatcherResponse, ConnectError> {
    let CreateWatcherRequest { path, recursive, include_entry, allow_network_mounts } = request;
    let asked = Asked { recursive, include_entry, allow_network_mounts };
    let daemon = Arc::clone(&call.daemon);
    let watch = Watch::open(call, path, asked).await?;
    let watcher_id = new_id()?;
    let (stop, mut stopped) = oneshot::channel();
    let (end, ended) = oneshot::channel();
    let following = Arc::clone(&watch);
    // Beyond the request (executor 2.7).
    daemon.tasks.spawn(async move {
        following.follow(&mut stopped).await;
        pool::run(move || drop(following)).await;
        drop(end);
    });
    let watcher = Watcher { watch, _stop: stop, ended };
    lock(&daemon.watchers.by_id).insert(watcher_id.clone(), watcher);
    Ok(CreateWatcherResponse { watcher_id })
}

fn new_id() -> Result<String, ConnectError> {
    let mut bytes = [0; 10];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    filled.map_err(|error| {
        ConnectError::new(Code::Internal, format!("failed to make a watcher's id: {error}"))
    })?;
    Ok(format!("w{}", hex::encode(bytes)))
}

/// Tells and forgets what happened; all that a finished request did is among it.
pub(in super::super) async fn watcher_events(
    call: RpcCall,
    request: GetWatcherEventsRequest,
) -> Result<GetWatcherEventsResponse, ConnectError> {
    let watch = call.daemon.watchers.find(&request.watcher_id)?;
    pool::run(move || {
        let mut state = watch.collect();
        match &state.failure {
            Some(failure) => Err(internal(failure)),
            None => Ok(GetWatcherEventsResponse { events: std::mem::take(&mut state.events) }),
        }
    })
    .await
}

/// Everything the watcher held is released when this returns.
pub(in super::super) async fn remove_watcher(
    call: RpcCall,
    request: RemoveWatcherRequest,
) -> Result<RemoveWatcherResponse, ConnectError> {
    let id = request.watcher_id;
    let removed = lock(&call.daemon.watchers.by_id).remove(&id);
    let Watcher { watch, _stop, ended } = removed.ok_or_else(|| unknown(&id))?;
    drop(_stop);
    pool::run(move || drop(watch)).await;
    // Nothing is ever sent: this is the task's end.
    drop(ended.await);
    Ok(RemoveWatcherResponse {})
}
