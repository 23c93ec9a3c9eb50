//! `POST /files/compose` (executor 6.6): joins files into one and removes them.

use std::io;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Limited};
use hyper::{Request, Response, StatusCode};
use rustix::fs::OFlags;
use sandyard_http::Inbound;
use serde::Deserialize;

use super::super::body::DaemonBody;
use super::super::trusted::LastLink;
use super::super::{Daemon, access, paths, plain, pool};
use super::write::Written;
use super::{FileRefusal, Owner};

/// The longest body.
const LIMIT: usize = 4 << 20;

#[derive(Deserialize)]
struct ComposeRequest {
    #[serde(default)]
    source_paths: Vec<String>,
    #[serde(default)]
    destination: String,
    username: Option<String>,
}

/// Answers an order to compose.
pub(in super::super) async fn compose(
    daemon: &Arc<Daemon>,
    request: Request<Inbound>,
) -> Response<DaemonBody> {
    match carry_out(daemon, request).await {
        Ok(written) => plain::json(StatusCode::OK, &written),
        Err(refusal) => refusal.response(),
    }
}

async fn carry_out(
    daemon: &Arc<Daemon>,
    request: Request<Inbound>,
) -> Result<Written, FileRefusal> {
    let body = Limited::new(request.into_body(), LIMIT).collect().await;
    let body = body.map_err(|error| FileRefusal::invalid(format!("failed to read it: {error}")))?;
    let order: ComposeRequest = serde_json::from_slice(&body.to_bytes())
        .map_err(|error| FileRefusal::invalid(format!("failed to read the JSON: {error}")))?;
    if order.source_paths.is_empty() || order.destination.is_empty() {
        return Err(FileRefusal::invalid("'source_paths' and 'destination' must not be empty"));
    }
    let owner = Owner::find(daemon, order.username.as_deref()).await?;
    let destination = owner.resolve(&order.destination)?;
    let sources: Vec<String> =
        order.source_paths.iter().map(|path| owner.resolve(path)).collect::<Result<_, _>>()?;
    pool::run(move || owner.act(|| join(&sources, destination, &owner))).await
}

fn join(sources: &[String], destination: String, owner: &Owner) -> Result<Written, FileRefusal> {
    for source in sources {
        if paths::clean(source) == paths::clean(&destination) {
            return Err(FileRefusal::invalid(format!("'{source}' is source and destination")));
        }
        match access::metadata(source) {
            Ok(found) if found.is_file() => {}
            Ok(_) => {
                return Err(FileRefusal::invalid(format!("'{source}' is not a regular file")));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let message = format!("path '{source}' does not exist");
                return Err(FileRefusal::new(StatusCode::NOT_FOUND, message));
            }
            Err(error) => return Err(owner.refused("look for", source, &error)),
        }
    }
    owner.make_parents(&destination)?;
    // A neighbour, so that the rename stays on one file system.
    let neighbour = format!("{destination}.compose-{:x}", unique());
    let result = write(sources, &neighbour, owner).and_then(|()| {
        access::rename(&neighbour, &destination)
            .map_err(|error| owner.refused("put in place", &destination, &error))
    });
    if let Err(refusal) = result {
        // It may not have come into being; the refusal says what matters.
        drop(access::remove_file(&neighbour));
        return Err(refusal);
    }
    for source in sources {
        match access::remove_file(source) {
            // Named twice.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(|error| owner.refused("remove", source, &error))?,
        }
    }
    Ok(Written::new(destination, Default::default()))
}

/// Told apart from others of this daemon and of one before it.
fn unique() -> u128 {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{SystemTime, UNIX_EPOCH};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (since.as_nanos() << 16) | u128::from(NEXT.fetch_add(1, Ordering::Relaxed) & 0xffff)
}

fn write(sources: &[String], path: &str, owner: &Owner) -> Result<(), FileRefusal> {
    let failed = |what: &str, error: &io::Error| owner.refused(what, path, error);
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
    let mut file = access::changing(path, LastLink::Keep, |place| place.open(flags, 0o666))
        .map_err(|error| failed("open", &error))?;
    access::take_new_file(&file, owner.user.uid, owner.user.gid)
        .map_err(|error| failed("own", &error))?;
    // Not blocking: it may be a pipe by now.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    for source in sources {
        let mut from = access::reading(source, LastLink::Follow, |place| place.open(flags, 0))
            .map_err(|error| owner.refused("open", source, &error))?;
        io::copy(&mut from, &mut file).map_err(|error| failed("write", &error))?;
    }
    Ok(())
}
