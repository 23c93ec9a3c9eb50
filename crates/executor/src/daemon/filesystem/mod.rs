//! The methods of `filesystem.Filesystem` (executor 1.2, 5). They run with the rights of the user, who
//! also decides how paths resolve.

pub(super) mod directories;
pub(super) mod entry;
pub(super) mod metadata;
mod remove;
mod walk;
mod watch;

use std::io;
use std::path::Path;
use std::sync::Arc;

use sandyard_contract::connect::{Code, ConnectError};
use sandyard_contract::rpc::filesystem::{
    EntryInfo, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse, MoveRequest,
    MoveResponse, RemoveRequest, RemoveResponse, StatRequest, StatResponse,
};

use super::accounts::{Names, User};
use super::connect::RpcCall;
use super::rights::{Rights, as_user};
use super::tasks::lock;
use super::{Daemon, access, paths, pool};

pub(super) use watch::{Watchers, create_watcher, remove_watcher, watch_dir, watcher_events};

pub(super) async fn stat(
    call: RpcCall,
    request: StatRequest,
) -> Result<StatResponse, ConnectError> {
    with_user(call, move |context| {
        let path = context.resolve(&request.path)?;
        Ok(StatResponse { entry: Some(context.describe(&path)?) })
    })
    .await
}

pub(super) async fn make_dir(
    call: RpcCall,
    request: MakeDirRequest,
) -> Result<MakeDirResponse, ConnectError> {
    with_user(call, move |context| {
        let path = context.resolve(&request.path)?;
        match access::metadata(&path) {
            Ok(found) if found.is_dir() => {
                let message = format!("directory '{path}' already exists");
                return Err(ConnectError::new(Code::AlreadyExists, message));
            }
            Ok(_) => {
                let message = format!("'{path}' exists and is not a directory");
                return Err(ConnectError::new(Code::InvalidArgument, message));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(context.failed("look for", &path, &error)),
        }
        directories::make(&path, &context.user)
            .map_err(|error| context.failed("make directory", &path, &error))?;
        context.daemon.watchers.catch_up(Path::new(&path));
        Ok(MakeDirResponse { entry: Some(context.describe(&path)?) })
    })
    .await
}

pub(super) async fn rename(
    call: RpcCall,
    request: MoveRequest,
) -> Result<MoveResponse, ConnectError> {
    with_user(call, move |context| {
        let source = context.resolve(&request.source)?;
        let destination = context.resolve(&request.destination)?;
        directories::make_parents(&destination, &context.user)
            .map_err(|error| context.failed("make the parents of", &destination, &error))?;
        access::rename(&source, &destination).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => missing(&source),
            _ => context.failed(&format!("move '{source}' to"), &destination, &error),
        })?;
        context.daemon.watchers.catch_up(Path::new(&destination));
        Ok(MoveResponse { entry: Some(context.describe(&destination)?) })
    })
    .await
}

pub(super) async fn list_dir(
    call: RpcCall,
    request: ListDirRequest,
) -> Result<ListDirResponse, ConnectError> {
    with_user(call, move |context| {
        let path = context.resolve(&request.path)?;
        let found = access::metadata(&path).map_err(|error| match error.raw_os_error() {
            Some(libc::ELOOP) => {
                let message = format!("'{path}' is a loop of symbolic links");
                ConnectError::new(Code::FailedPrecondition, message)
            }
            Some(libc::ENOENT) => missing(&path),
            _ => context.failed("look for", &path, &error),
        })?;
        if !found.is_dir() {
            let message = format!("'{path}' is not a directory");
            return Err(ConnectError::new(Code::InvalidArgument, message));
        }
        let names = Names::load().map_err(|error| failed("read the users for", &path, &error))?;
        let entries = walk::list(&path, request.depth.max(1), &names)
            .map_err(|error| context.failed("list", &path, &error))?;
        let entries = entries.into_iter().map(|entry| context.told(entry)).collect();
        Ok(ListDirResponse { entries })
    })
    .await
}

pub(super) async fn remove(
    call: RpcCall,
    request: RemoveRequest,
) -> Result<RemoveResponse, ConnectError> {
    with_user(call, move |context| {
        let path = context.resolve(&request.path)?;
        remove::remove_all(&path).map_err(|error| context.failed("remove", &path, &error))?;
        Ok(RemoveResponse {})
    })
    .await
}

/// The context of a file system call: for which user, and where relative paths begin.
struct FilesystemContext {
    daemon: Arc<Daemon>,
    user: User,
    rights: Rights,
    workdir: Option<String>,
    is_legacy: bool,
}

impl FilesystemContext {
    fn describe(&self, path: &str) -> Result<EntryInfo, ConnectError> {
        let entry = Names::load().and_then(|names| entry::describe(path, &names));
        let entry = entry.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => missing(path),
            _ => self.failed("look at", path, &error),
        })?;
        Ok(self.told(entry))
    }

    /// The answer to what went wrong; what the user may not do is told apart.
    fn failed(&self, what: &str, path: &str, error: &io::Error) -> ConnectError {
        match access::is_refusal(error) {
            true => {
                let message = format!("user '{}' may not {what} '{path}': {error}", self.user.name);
                ConnectError::new(Code::PermissionDenied, message)
            }
            false => failed(what, path, error),
        }
    }

    /// What the client is told of an entry: legacy clients refuse members that they do not know (executor 8).
    fn told(&self, entry: EntryInfo) -> EntryInfo {
        match self.is_legacy {
            false => entry,
            true => {
                let EntryInfo { name, r#type, path, .. } = entry;
                EntryInfo { name, r#type, path, ..EntryInfo::default() }
            }
        }
    }

    fn resolve(&self, path: &str) -> Result<String, ConnectError> {
        paths::resolve(path, &self.user.home, self.workdir.as_deref())
            .map_err(|error| ConnectError::new(Code::InvalidArgument, error.to_string()))
    }
}

/// Works on the pool, with the rights of the call's user.
async fn with_user<T: Send + 'static>(
    call: RpcCall,
    work: impl FnOnce(FilesystemContext) -> Result<T, ConnectError> + Send + 'static,
) -> Result<T, ConnectError> {
    pool::run(move || {
        let user = call.user()?;
        let name = user.name.clone();
        let failed = |error| failed("take the rights of", &name, &error);
        let rights = Rights::of(&user).map_err(failed)?;
        let workdir = lock(&call.daemon.settings).default_workdir.clone();
        let (daemon, is_legacy) = (Arc::clone(&call.daemon), call.is_legacy);
        let context =
            FilesystemContext { daemon, user, rights: rights.clone(), workdir, is_legacy };
        as_user(&rights, || work(context)).map_err(failed)?
    })
    .await
}

fn missing(path: &str) -> ConnectError {
    ConnectError::new(Code::NotFound, format!("path '{path}' does not exist"))
}

fn failed(what: &str, path: &str, error: &io::Error) -> ConnectError {
    ConnectError::new(Code::Internal, format!("failed to {what} '{path}': {error}"))
}
