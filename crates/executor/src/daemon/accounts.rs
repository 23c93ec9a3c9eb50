//! Users and groups, read from the image's files each time they are needed: they may change while the
//! sandbox runs, and a static program has no name service (executor 3.1, 12).

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt;

use super::access::is_refusal;
use super::rights::as_root;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// A user of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    pub home: String,
}

impl User {
    /// Finds a user by name; `None` if the image has none of that name.
    ///
    /// # Errors
    /// If the file of users cannot be read; a missing one is an image without users.
    pub(super) fn find(name: &str) -> io::Result<Option<Self>> {
        Ok(users(&read(PASSWD)?).find(|user| user.name == name))
    }

    /// The user's primary and supplementary groups.
    pub(super) fn groups(&self) -> io::Result<Vec<u32>> {
        Ok(groups_of(&read(GROUP)?, self))
    }
}

/// The names of numbers, for owners of files.
pub(super) struct Names {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
}

impl Names {
    pub(super) fn load() -> io::Result<Self> {
        let load = || Ok(Self::parse(&read(PASSWD)?, &read(GROUP)?));
        match load() {
            // An image may keep its users from reading who they are; the daemon tells them all the same.
            Err(error) if is_refusal(&error) => as_root(load)?,
            loaded => loaded,
        }
    }

    fn parse(passwd: &str, group: &str) -> Self {
        let mut names = Self { users: BTreeMap::new(), groups: BTreeMap::new() };
        // The first line with a number names it.
        for user in users(passwd) {
            names.users.entry(user.uid).or_insert(user.name);
        }
        for (name, gid, _) in groups(group) {
            names.groups.entry(gid).or_insert_with(|| name.to_owned());
        }
        names
    }

    /// The user's name, or the number as text.
    pub(super) fn user(&self, uid: u32) -> String {
        self.users.get(&uid).cloned().unwrap_or_else(|| uid.to_string())
    }

    /// The group's name, or the number as text.
    pub(super) fn group(&self, gid: u32) -> String {
        self.groups.get(&gid).cloned().unwrap_or_else(|| gid.to_string())
    }
}

fn read(path: &str) -> io::Result<String> {
    // Whatever root in the sandbox puts there, opening it must not block.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    // Enough for most, so that it is one read.
    let mut bytes = Vec::with_capacity(8 << 10);
    match file.and_then(|file| file.take(16 << 20).read_to_end(&mut bytes)) {
        Ok(_) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}

fn users(passwd: &str) -> impl Iterator<Item = User> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let (_password, uid, gid) = (fields.next()?, fields.next()?, fields.next()?);
        let (_comment, home) = (fields.next()?, fields.next()?);
        Some(User {
            name: name.to_owned(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: if home.is_empty() { "/" } else { home }.to_owned(),
        })
    })
}

fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some((name, gid, fields.next().unwrap_or("")))
    })
}

fn groups_of(group: &str, user: &User) -> Vec<u32> {
    let mut all = vec![user.gid];
    for (_, gid, members) in groups(group) {
        if members.split(',').any(|member| member.trim() == user.name) && !all.contains(&gid) {
            all.push(gid);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n# a comment\nbroken\n\
        user:x:1000:1000:,,,:/home/user:/bin/bash\nalias:x:1000:1000::/home/alias:/bin/sh\n\
        odd:x:nan:0::/:\nplain:x:1001:100::";
    const GROUP: &str = "root:x:0:\nsudo:x:27:user,other\nuser:x:1000:\nwheel:x:10:other, user\n\
        again:x:1000:user\n";

    #[test]
    fn users_are_read_and_broken_lines_skipped() {
        let all: Vec<User> = users(PASSWD).collect();
        let names: Vec<&str> = all.iter().map(|user| user.name.as_str()).collect();
        assert_eq!(names, ["root", "user", "alias", "plain"]);
        assert_eq!(all[1].home, "/home/user");
        assert_eq!(all[3].home, "/");
    }

    #[test]
    fn the_primary_group_comes_first_and_once() {
        let user = users(PASSWD).nth(1).unwrap();
        assert_eq!(groups_of(GROUP, &user), [1000, 27, 10]);
    }

    #[test]
    fn unknown_numbers_are_their_own_name() {
        let names = Names::parse(PASSWD, GROUP);
        assert_eq!(names.user(1000), "user");
        assert_eq!(names.user(4711), "4711");
        assert_eq!(names.group(27), "sudo");
        assert_eq!(names.group(4711), "4711");
    }
}
