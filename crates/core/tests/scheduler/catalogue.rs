//! Snapshots as templates: names, tags, what a reference means (control-plane 3.5, 4.2), and when images go.

use std::collections::BTreeSet;

use sandyard_core::{
    CreateSandbox, DeleteRefusal, InvalidSnapshotName, SandboxError, Snapshot, SnapshotFilter,
    TemplateReference, UnknownTemplate,
};
use sandyard_types::{PauseKind, SandboxId, Template};
use sqlx::Row as _;

use crate::host::{HostSettings, MINUTE, SchedulerHost, eventually, request, template};

/// A host with the templates `base` and `other`, and room for sandboxes.
async fn start() -> anyhow::Result<SchedulerHost> {
    let mut settings = HostSettings::default();
    let (id, name) = ("other56789other56789".parse()?, "other".parse()?);
    settings.templates.push(Template { id, name, image: "other".to_owned(), ..template() });
    settings.limits.max_sandboxes = 10;
    SchedulerHost::with(settings).await
}

fn reference(text: &str) -> TemplateReference {
    text.parse().expect(text)
}

/// The image that a create of the first team would start from.
fn image(host: &SchedulerHost, text: &str) -> Result<String, UnknownTemplate> {
    let found = host.scheduler.catalogue().resolve(host.team, &reference(text));
    found.map(|template| template.image.clone())
}

async fn snapshot(
    host: &SchedulerHost,
    id: &SandboxId,
    name: &str,
) -> Result<Snapshot, SandboxError> {
    host.scheduler.snapshot(host.team, id, Some(&reference(name))).await
}

fn unknown(text: &str) -> UnknownTemplate {
    UnknownTemplate::Name(text.to_owned())
}

fn no_tag(name: &str, tag: &str) -> UnknownTemplate {
    UnknownTemplate::Tag { name: name.to_owned(), tag: tag.to_owned() }
}

#[tokio::test]
async fn a_snapshot_without_a_name_is_a_template_of_its_own() -> anyhow::Result<()> {
    let mut host = start().await?;
    let sandbox = host.create(request()).await?;
    let one = host.scheduler.snapshot(host.team, &sandbox.id, None).await?;
    let two = host.scheduler.snapshot(host.team, &sandbox.id, None).await?;
    assert_ne!(one.template, two.template);
    for snapshot in [&one, &two] {
        assert_eq!(snapshot.id, format!("{}:default", snapshot.template));
        assert!(snapshot.names.is_empty());
        // With its tag and without; but not in a namespace.
        let id = snapshot.template.as_str();
        assert_eq!(image(&host, &snapshot.id), image(&host, id));
        let qualified = format!("default/{id}");
        assert_eq!(image(&host, &qualified), Err(unknown(&qualified)));
        assert_eq!(image(&host, &format!("{id}:v1")), Err(no_tag(id, "v1")));
    }
    assert_ne!(image(&host, &one.id)?, image(&host, &two.id)?);
    // Nobody else's, and the same after a restart.
    let catalogue = host.scheduler.catalogue();
    assert!(catalogue.resolve(host.other_team, &reference(&one.id)).is_err());
    let before = (image(&host, &one.id)?, image(&host, &two.id)?);
    host.crash_and_restart().await?;
    assert_eq!((image(&host, &one.id)?, image(&host, &two.id)?), before);
    // What starts from it is as its source was, with its files.
    let template = reference(&one.id);
    let copy = host.create(CreateSandbox { template, ..request() }).await?;
    assert_eq!(copy.template.image, before.0);
    assert_eq!((&copy.template.user, copy.template.memory_mib), (&sandbox.template.user, 512));
    let claim = host.engine.claims().pop().expect("one");
    assert_eq!((claim.env["A"].as_str(), claim.template_id), ("template", one.template.clone()));
    host.settled("started").await
}

#[tokio::test]
async fn a_name_is_one_template_with_a_build_for_each_snapshot() -> anyhow::Result<()> {
    let mut host = start().await?;
    let sandbox = host.create(request()).await?;
    let first = snapshot(&host, &sandbox.id, "saved").await?;
    assert_eq!(first.id, "default/saved:default");
    assert_eq!(first.names, ["default/saved"]);
    let old = image(&host, "saved")?;
    // Every way to write it, also in other letters and with spaces around.
    for way in ["saved:default", "default/saved", "default/saved:default", " Default/SAVED "] {
        assert_eq!(image(&host, way), Ok(old.clone()), "{way}");
    }
    assert_eq!(image(&host, first.template.as_str()), Ok(old.clone()));
    // The same name again, written in another way: a new build of the same template, used at once.
    let second = snapshot(&host, &sandbox.id, "default/saved").await?;
    assert_eq!((&second.id, &second.template), (&first.id, &first.template));
    let new = image(&host, "saved")?;
    assert_ne!(new, old);
    let template = reference("saved");
    let copy = host.create(CreateSandbox { template, ..request() }).await?;
    assert_eq!(copy.template.image, new);
    // Another tag: the same template, and the first tag is as it was.
    let tagged = snapshot(&host, &sandbox.id, "saved:v1.2").await?;
    assert_eq!((tagged.id.as_str(), &tagged.template), ("default/saved:v1.2", &first.template));
    assert_eq!(tagged.names, ["default/saved"]);
    assert_eq!(image(&host, "saved"), Ok(new.clone()));
    let tagged = image(&host, "saved:v1.2")?;
    assert!(tagged != new && tagged != old);
    assert_eq!(image(&host, "saved:v2"), Err(no_tag("saved", "v2")));
    // The id of a build in the place of a tag is that build, also one that no tag means any more.
    let builds = sqlx::query("SELECT id, document FROM builds").fetch_all(&host.database).await?;
    assert_eq!(builds.len(), 3);
    let mut found = BTreeSet::new();
    for build in &builds {
        let id: String = build.try_get("id")?;
        found.insert(image(&host, &format!("saved:{id}"))?);
    }
    assert_eq!(found, BTreeSet::from([old, new.clone(), tagged.clone()]));
    host.crash_and_restart().await?;
    assert_eq!((image(&host, "saved")?, image(&host, "saved:v1.2")?), (new, tagged));
    host.settled("restarted").await
}

#[tokio::test]
async fn names_resolve_in_the_contracts_order() -> anyhow::Result<()> {
    let host = start().await?;
    assert_eq!(image(&host, "base")?, "image");
    assert_eq!(image(&host, "abcdefghij0123456789")?, "image");
    assert_eq!(image(&host, "base:default")?, "image");
    assert_eq!(image(&host, "base:v1"), Err(no_tag("base", "v1")));
    assert_eq!(image(&host, "default/base"), Err(unknown("default/base")));
    assert_eq!(image(&host, "nope"), Err(unknown("nope")));
    // A team's own name comes before the global one, for that team alone.
    let sandbox = host.create(request()).await?;
    let own = snapshot(&host, &sandbox.id, "base").await?;
    assert_eq!(own.id, "default/base:default");
    assert!(image(&host, "base")?.starts_with("fake:"));
    assert_eq!(image(&host, "base"), image(&host, "default/base"));
    assert_eq!(image(&host, "abcdefghij0123456789")?, "image");
    let catalogue = host.scheduler.catalogue();
    let others = catalogue.resolve(host.other_team, &reference("base"))?;
    assert_eq!(others.image, "image");
    assert!(catalogue.resolve(host.other_team, &reference("default/base")).is_err());
    // A global name comes before an id.
    snapshot(&host, &sandbox.id, "two-words_1").await?;
    assert!(image(&host, "two-words_1")?.starts_with("fake:"));
    assert!(image(&host, "two/two-words_1").is_err());
    Ok(())
}

#[tokio::test]
async fn a_name_that_cannot_be_given_is_refused_before_anything_is_done() -> anyhow::Result<()> {
    let host = start().await?;
    let sandbox = host.create(request()).await?;
    let uuid = "0b3c1b6e-7f1a-4a4e-9d7e-0c9f3a1b2c3d";
    let foreign = snapshot(&host, &sandbox.id, "two/saved").await;
    assert!(
        matches!(
            &foreign,
            Err(SandboxError::SnapshotName(InvalidSnapshotName::Namespace { own, .. }))
                if own == "default"
        ),
        "{foreign:?}"
    );
    let tag = snapshot(&host, &sandbox.id, &format!("saved:{uuid}")).await;
    let expected = InvalidSnapshotName::Tag(uuid.to_owned());
    assert!(matches!(tag, Err(SandboxError::SnapshotName(found)) if found == expected));
    let configured = snapshot(&host, &sandbox.id, "abcdefghij0123456789").await;
    assert!(matches!(
        configured,
        Err(SandboxError::SnapshotName(InvalidSnapshotName::Configured(_)))
    ));
    assert!(host.engine.images().is_empty());
    assert_eq!(host.count(sandyard_testkit::EngineCall::Freeze), 0);
    Ok(())
}

#[tokio::test]
async fn the_list_shows_what_is_asked_for_newest_first() -> anyhow::Result<()> {
    let host = start().await?;
    let (one, two) = (host.create(request()).await?, host.create(request()).await?);
    let unnamed = host.scheduler.snapshot(host.team, &one.id, None).await?;
    snapshot(&host, &one.id, "saved").await?;
    snapshot(&host, &two.id, "saved:v1").await?;
    let catalogue = host.scheduler.catalogue();
    let list = |team, source: Option<&SandboxId>, name: Option<&str>| {
        let filter = SnapshotFilter { source: source.cloned(), name: name.map(reference) };
        let found = catalogue.snapshots(team, &filter);
        found.map(|all| all.into_iter().map(|snapshot| snapshot.id).collect::<Vec<_>>())
    };
    let (tagged, named) = ("default/saved:v1", "default/saved:default");
    assert_eq!(list(host.team, None, None)?, [tagged, named, &unnamed.id]);
    assert_eq!(list(host.team, Some(&one.id), None)?, [named, &unnamed.id]);
    assert_eq!(list(host.team, Some(&two.id), None)?, [tagged]);
    // A bare name: one entry, its newest tag. A tag: only that one.
    for name in ["saved", "default/saved"] {
        assert_eq!(list(host.team, None, Some(name))?, [tagged], "{name}");
    }
    assert_eq!(list(host.team, None, Some("saved:default"))?, [named]);
    assert_eq!(list(host.team, None, Some("saved:v1"))?, [tagged]);
    assert_eq!(list(host.team, None, Some(unnamed.template.as_str()))?, [unnamed.id.as_str()]);
    for none in ["saved:v2", "nope", "base"] {
        assert_eq!(list(host.team, None, Some(none))?, [""; 0], "{none}");
    }
    assert!(list(host.team, None, Some("two/saved")).is_err());
    assert_eq!(list(host.other_team, None, None)?, [""; 0]);
    assert_eq!(list(host.other_team, None, Some("saved"))?, [""; 0]);
    // The same name again is the newest, and no second entry.
    snapshot(&host, &one.id, "saved").await?;
    assert_eq!(list(host.team, None, None)?, [named, tagged, &unnamed.id]);
    assert_eq!(list(host.team, None, Some("saved"))?, [named]);
    Ok(())
}

#[tokio::test]
async fn what_is_in_use_foreign_or_configured_is_not_deleted() -> anyhow::Result<()> {
    let host = start().await?;
    let sandbox = host.create(request()).await?;
    snapshot(&host, &sandbox.id, "saved").await?;
    let saved = reference("saved");
    let delete =
        async |team, text: &str| match host.scheduler.delete_template(team, &reference(text)).await
        {
            Ok(()) => Ok(()),
            Err(SandboxError::Delete(refusal)) => Err(refusal),
            Err(other) => panic!("{other}"),
        };
    for configured in ["base", "base:default", "abcdefghij0123456789"] {
        let expected = Err(DeleteRefusal::Configured("base".to_owned()));
        assert_eq!(delete(host.team, configured).await, expected);
    }
    // Another team does not know the name, and may not have the id.
    let id = image_template(&host, "saved");
    assert!(matches!(delete(host.other_team, "saved").await, Err(DeleteRefusal::Unknown(_))));
    assert_eq!(delete(host.other_team, &id).await, Err(DeleteRefusal::Foreign));
    assert!(matches!(delete(host.team, "nope").await, Err(DeleteRefusal::Unknown(_))));
    // In use by a running and by a paused sandbox, and by a fork of one.
    let copy = host.create(CreateSandbox { template: saved.clone(), ..request() }).await?;
    assert_eq!(delete(host.team, "saved").await, Err(DeleteRefusal::InUse(1)));
    host.pause(&copy.id, PauseKind::Filesystem).await?;
    assert_eq!(delete(host.team, "saved").await, Err(DeleteRefusal::InUse(1)));
    host.scheduler.resume(host.team, &copy.id, MINUTE, true, None).await?;
    let fork = host.scheduler.fork(host.team, &copy.id, 1, MINUTE).await?.remove(0)?.keep();
    host.scheduler.kill(host.team, &copy.id).await?;
    assert_eq!(delete(host.team, "saved").await, Err(DeleteRefusal::InUse(1)));
    host.scheduler.kill(host.team, &fork.id).await?;
    // A tag is ignored: all of it goes, with its image, and a second time there is nothing.
    eventually("the fork's image's removal", || host.engine.images().len() == 1).await;
    assert_eq!(delete(host.team, "default/saved:v9").await, Ok(()));
    assert!(host.engine.images().is_empty());
    assert!(matches!(delete(host.team, "saved").await, Err(DeleteRefusal::Unknown(_))));
    assert_eq!(image(&host, "saved"), Err(unknown("saved")));
    // The name is free for a new template.
    let new = snapshot(&host, &sandbox.id, "saved").await?;
    assert_ne!(new.template.as_str(), id);
    host.settled("deleted").await
}

fn image_template(host: &SchedulerHost, text: &str) -> String {
    let found = host.scheduler.catalogue().id_of(host.team, &reference(text));
    found.expect("known").to_string()
}

#[tokio::test]
async fn the_image_of_a_fork_goes_with_its_last_user() -> anyhow::Result<()> {
    let mut host = start().await?;
    let source = host.create(request()).await?;
    let forks = host.scheduler.fork(host.team, &source.id, 3, MINUTE).await?;
    let forks: Vec<_> =
        forks.into_iter().map(|f| f.map(|new| new.keep())).collect::<Result<_, _>>()?;
    let images = host.engine.images();
    assert_eq!(images.len(), 1);
    for fork in &forks {
        assert_eq!(fork.template.image, images[0]);
        assert_eq!(fork.template.id, source.template.id);
        assert_eq!((&fork.metadata, fork.lifecycle), (&source.metadata, source.lifecycle));
        assert_eq!(fork.end_at, fork.started_at + MINUTE);
    }
    // The source is as it was.
    let seen = host.get(&source.id)?;
    assert_eq!((seen.started_at, seen.end_at), (source.started_at, source.end_at));
    host.scheduler.kill(host.team, &source.id).await?;
    host.scheduler.kill(host.team, &forks[0].id).await?;
    host.settled("two left").await?;
    assert_eq!(host.engine.images(), images);
    // Paused, over a restart: still in use.
    host.pause(&forks[1].id, PauseKind::Filesystem).await?;
    host.scheduler.kill(host.team, &forks[2].id).await?;
    host.crash_and_restart().await?;
    host.settled("restarted").await?;
    assert_eq!(host.engine.images(), images);
    host.scheduler.kill(host.team, &forks[1].id).await?;
    host.assert_empty("all killed").await
}

#[tokio::test]
async fn a_snapshot_outlives_its_source_and_what_was_started_from_it() -> anyhow::Result<()> {
    let host = start().await?;
    let source = host.create(request()).await?;
    snapshot(&host, &source.id, "saved").await?;
    host.scheduler.kill(host.team, &source.id).await?;
    let template = reference("saved");
    let copy = host.create(CreateSandbox { template, ..request() }).await?;
    host.scheduler.kill(host.team, &copy.id).await?;
    host.settled("killed").await?;
    assert_eq!(host.engine.images().len(), 1);
    image(&host, "saved")?;
    Ok(())
}

#[tokio::test]
async fn a_start_removes_images_that_nobody_has_and_no_other() -> anyhow::Result<()> {
    let mut host = start().await?;
    let sandbox = host.create(request()).await?;
    snapshot(&host, &sandbox.id, "saved").await?;
    let kept = host.engine.images();
    // One whose commit was done when the server died.
    use sandyard_core::Runtime as _;
    host.engine.commit(&sandbox.instance.id, "stray").await?;
    assert_eq!(host.engine.images().len(), 2);
    host.crash_and_restart().await?;
    assert_eq!(host.engine.images(), kept);
    host.settled("removed").await?;
    // What a row means that this version cannot read is not known, so nothing is removed.
    sqlx::query("UPDATE builds SET version = 99").execute(&host.database).await?;
    host.crash_and_restart().await?;
    assert_eq!(host.engine.images(), kept, "the image of an unreadable snapshot is removed");
    sqlx::query("UPDATE builds SET version = 1").execute(&host.database).await?;
    host.crash_and_restart().await?;
    image(&host, "saved")?;
    host.settled("readable again").await
}

#[tokio::test]
async fn snapshots_of_one_name_at_once_are_builds_of_one_template() -> anyhow::Result<()> {
    let host = start().await?;
    let mut sandboxes = Vec::new();
    for _ in 0..4 {
        sandboxes.push(host.create(request()).await?);
    }
    let taken = sandboxes.iter().map(|sandbox| snapshot(&host, &sandbox.id, "saved"));
    let taken = futures::future::join_all(taken).await;
    let taken: Vec<Snapshot> = taken.into_iter().collect::<Result<_, _>>()?;
    let templates: BTreeSet<_> = taken.iter().map(|snapshot| snapshot.template.clone()).collect();
    assert_eq!(templates.len(), 1);
    assert_eq!(host.engine.images().len(), 4);
    host.settled("taken").await?;
    host.scheduler.delete_template(host.team, &reference("saved")).await?;
    assert!(host.engine.images().is_empty());
    Ok(())
}
