//! `/files` (executor 6.4 to 6.6): whole files in and out, streamed.

mod buffers;
mod compose;
mod content;
mod download;
mod encoding;
mod gzip;
mod handle;
mod metadata;
mod preconditions;
mod ranges;
mod upload;
mod write;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::header::HeaderMap;
use hyper::{Response, StatusCode, Uri};

use super::accounts::User;
use super::auth::{Operation, Signed};
use super::body::DaemonBody;
use super::filesystem::directories;
use super::rights::{Rights, as_user};
use super::tasks::lock;
use super::{Daemon, access, paths, plain, pool};

pub(super) use compose::compose;
pub(super) use download::download;
pub(super) use upload::upload;

/// How much of a file is read or written at once.
const CHUNK_BYTES: usize = 256 << 10;

/// A refusal: status and message.
#[derive(Debug, PartialEq, Eq)]
struct FileRefusal {
    status: StatusCode,
    message: String,
    /// Whether the body is the message alone instead of the error's JSON.
    bare: bool,
}

impl FileRefusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), bare: false }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// What the operating system refused.
    fn system(what: &str, path: &str, error: &io::Error) -> Self {
        let full = [libc::ENOSPC, libc::EDQUOT];
        let status = match error.raw_os_error() {
            Some(errno) if full.contains(&errno) => StatusCode::INSUFFICIENT_STORAGE,
            Some(libc::EISDIR) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, format!("failed to {what} '{path}': {error}"))
    }

    fn response(self) -> Response<DaemonBody> {
        match self.bare {
            true => plain::text(self.status, self.message),
            false => plain::error(self.status, self.message),
        }
    }
}

/// A file request's query; the first of repeated names counts.
#[derive(Debug, Default, PartialEq, Eq)]
struct FileQuery {
    path: Option<String>,
    username: Option<String>,
    signature: Option<String>,
    expiration: Option<i64>,
}

impl FileQuery {
    fn parse(uri: &Uri) -> Result<Self, FileRefusal> {
        let mut query = Self::default();
        let mut expiration = None;
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or("").as_bytes()) {
            let place = match &*name {
                "path" => &mut query.path,
                "username" => &mut query.username,
                "signature" => &mut query.signature,
                "signature_expiration" => &mut expiration,
                _ => continue,
            };
            place.get_or_insert_with(|| value.into_owned());
        }
        if let Some(text) = expiration {
            query.expiration = Some(text.parse().map_err(|_| FileRefusal {
                status: StatusCode::BAD_REQUEST,
                message: format!("signature_expiration '{text}' is not a number of seconds\n"),
                bare: true,
            })?);
        }
        Ok(query)
    }

    fn check(
        &self,
        operation: Operation,
        daemon: &Daemon,
        headers: &HeaderMap,
    ) -> Result<(), FileRefusal> {
        let signed = Signed {
            operation,
            path: self.path.as_deref().unwrap_or(""),
            username: self.username.as_deref().unwrap_or(""),
            signature: self.signature.as_deref(),
            expiration: self.expiration,
        };
        let settings = lock(&daemon.settings);
        signed
            .check(settings.access_token.as_ref(), headers, now())
            .map_err(|message| FileRefusal::new(StatusCode::UNAUTHORIZED, message))
    }
}

fn now() -> i64 {
    // A clock before 1970 lets no URL expire.
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Whose files a request is about, by name.
struct OwnerName {
    daemon: Arc<Daemon>,
    name: String,
    workdir: Option<String>,
}

/// Whose files, and where paths without a place begin.
struct Owner {
    daemon: Arc<Daemon>,
    user: User,
    rights: Rights,
    workdir: Option<String>,
}

impl OwnerName {
    /// The user of the query, else the default user.
    fn new(daemon: &Arc<Daemon>, username: Option<&str>) -> Self {
        let settings = lock(&daemon.settings);
        let name = username.filter(|name| !name.is_empty()).unwrap_or(&settings.default_user);
        let workdir = settings.default_workdir.clone();
        Self { daemon: Arc::clone(daemon), name: name.to_owned(), workdir }
    }

    /// Looks the user up. Blocks.
    fn find(&self) -> Result<Owner, FileRefusal> {
        match User::find(&self.name) {
            Ok(Some(user)) => {
                let rights = Rights::of(&user).map_err(|error| {
                    FileRefusal::system("find the groups of", &self.name, &error)
                })?;
                let (daemon, workdir) = (Arc::clone(&self.daemon), self.workdir.clone());
                Ok(Owner { daemon, user, rights, workdir })
            }
            Ok(None) => {
                let message = format!("invalid username: '{}'", self.name);
                Err(FileRefusal::new(StatusCode::UNAUTHORIZED, message))
            }
            Err(error) => Err(FileRefusal::system("look up the user", &self.name, &error)),
        }
    }
}

impl Owner {
    /// The user of the query, else the default user.
    async fn find(daemon: &Arc<Daemon>, username: Option<&str>) -> Result<Self, FileRefusal> {
        let name = OwnerName::new(daemon, username);
        pool::run(move || name.find()).await
    }

    /// Works with the user's rights. Blocks.
    fn act<T>(&self, work: impl FnOnce() -> Result<T, FileRefusal>) -> Result<T, FileRefusal> {
        let done = as_user(&self.rights, work);
        done.map_err(|error| FileRefusal::system("take the rights of", &self.user.name, &error))?
    }

    /// What the operating system refused this user.
    fn refused(&self, what: &str, path: &str, error: &io::Error) -> FileRefusal {
        match access::is_refusal(error) {
            true => FileRefusal::new(
                StatusCode::FORBIDDEN,
                format!("user '{}' may not {what} '{path}': {error}", self.user.name),
            ),
            false => FileRefusal::system(what, path, error),
        }
    }

    /// Makes what is missing above a file, seen by watchers before the file itself is made. Blocks.
    fn make_parents(&self, path: &str) -> Result<(), FileRefusal> {
        let made = directories::make_parents(path, &self.user)
            .map_err(|error| self.refused("make the directories of", path, &error))?;
        if made {
            self.show_to_watchers(path);
        }
        Ok(())
    }

    /// Lets watchers see what was done with a file before more is done. Blocks.
    fn show_to_watchers(&self, path: &str) {
        if let Some(parent) = Path::new(path).parent() {
            self.daemon.watchers.catch_up(parent);
        }
    }

    fn resolve(&self, path: &str) -> Result<String, FileRefusal> {
        paths::resolve(path, &self.user.home, self.workdir.as_deref())
            .map_err(|error| FileRefusal::invalid(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Result<FileQuery, FileRefusal> {
        FileQuery::parse(&format!("/files?{text}").parse().unwrap())
    }

    #[test]
    fn queries_are_form_encoded_and_the_first_counts() {
        let read = query("path=a+b%2Fc%20d&path=x&username=u&signature_expiration=-3").unwrap();
        assert_eq!(read.path.as_deref(), Some("a b/c d"));
        assert_eq!(read.expiration, Some(-3));
        assert!(query("signature_expiration=soon").unwrap_err().bare);
        assert_eq!(query("").unwrap(), FileQuery::default());
    }
}
