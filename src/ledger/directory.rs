//! Where a ledger file is, or is to be: whether it can be made there, who else may write there, what
//! kind of disk it is. What is tried out is undone at once; the ledger itself is not touched.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// File systems on which several hosts can work on one file, and locks are a matter of luck.
const SHARED: [&str; 10] = [
    "9p",
    "afs",
    "beegfs",
    "ceph",
    "cifs",
    "fuse.glusterfs",
    "fuse.sshfs",
    "lustre",
    "nfs",
    "nfs4",
];

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// What keeps a relay from working there.
    pub faults: Vec<String>,
    /// What may go wrong there.
    pub warnings: Vec<String>,
}

impl Directory {
    /// Looks at the directory of a ledger file, or of one that is not there yet.
    pub fn look(file: &Path) -> Directory {
        let mut found = Directory::default();
        let directory = directory_of(file);
        let Some(existing) = directory.ancestors().find(|path| path.exists()) else {
            found.faults.push(format!(
                "no existing parent directory for {}; set ledger.url",
                directory.display()
            ));
            return found;
        };
        found.faults.extend(cannot_write(existing, &directory));
        if existing == directory {
            found.look_at_mode(&directory);
        }
        found.warnings.extend(shared_disk(existing));
        found
    }

    fn look_at_mode(&mut self, directory: &Path) {
        let Ok(metadata) = fs::metadata(directory) else { return };
        let mode = metadata.permissions().mode() & 0o7777;
        let shown = directory.display();
        let way_out = format!("chmod 700 {shown}");
        if mode & 0o022 != 0 {
            let text = "can put another file in the ledger's place";
            self.faults
                .push(format!("whoever may write to {shown} {text} (mode {mode:o}): {way_out}"));
        } else if mode & 0o055 != 0 {
            self.warnings
                .push(format!("{shown} is open to other users (mode {mode:o}): {way_out}"));
        }
    }
}

fn directory_of(file: &Path) -> PathBuf {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = parent.unwrap_or(Path::new("."));
    // One that is not there yet stays as it was named.
    std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned())
}

/// Tried out: what permissions seem to say is not all there is to it.
fn cannot_write(existing: &Path, wanted: &Path) -> Option<String> {
    let trial = existing.join(format!(".customer-relay-check-{}", std::process::id()));
    let made = OpenOptions::new().write(true).create_new(true).open(&trial);
    let error = made.and_then(|_| fs::remove_file(&trial)).err()?;
    let (existing, wanted) = (existing.display(), wanted.display());
    Some(format!(
        "the ledger's directory {wanted} cannot be made or written: {existing}: {error}. Make it and \
         give it to this user, or set ledger.url"
    ))
}

fn shared_disk(directory: &Path) -> Option<String> {
    let directory = directory.canonicalize().ok()?;
    let kind = disk_kind(&fs::read_to_string("/proc/self/mounts").ok()?, &directory)?;
    SHARED.contains(&kind.as_str()).then(|| {
        format!(
            "{} is on a network file system ({kind}): its locks cannot be trusted to keep a relay of \
             another host out, and SQLite may damage the file. Use a local disk, or postgres://",
            directory.display()
        )
    })
}

/// The kind of file system that a directory is on: that of the longest mount point above it, and of
/// those the last.
fn disk_kind(mounts: &str, directory: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let point = words.next()?.replace("\\040", " ");
        Some((PathBuf::from(point), words.next()?.to_owned()))
    });
    let above = mounts.filter(|(point, _)| directory.starts_with(point));
    above.max_by_key(|(point, _)| point.components().count()).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_on_the_file_system_mounted_closest_above_it() {
        let mounts = "/dev/a / ext4 rw 0 0\nhost:/x /var/lib nfs4 rw 0 0\n\
                      /dev/b /var/lib/own\\040disk xfs rw 0 0\n";
        let kind = |path| disk_kind(mounts, Path::new(path));
        assert_eq!(kind("/etc").as_deref(), Some("ext4"));
        assert_eq!(kind("/var/lib/customer-relay").as_deref(), Some("nfs4"));
        assert_eq!(kind("/var/lib/own disk/x").as_deref(), Some("xfs"));
        assert_eq!(kind("/var/library").as_deref(), Some("ext4"));
    }

    #[test]
    fn a_place_is_looked_at_without_leaving_anything_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let mode = |mode| {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).expect("a mode");
            Directory::look(&folder.path().join("ledger.db"))
        };
        let private = mode(0o700);
        assert_eq!((private.faults.len(), private.warnings.len()), (0, 0), "{private:?}");
        assert!(mode(0o770).faults[0].contains("chmod 700"));
        assert!(mode(0o755).warnings[0].contains("open to other users"));
        assert_eq!(
            Directory::look(&folder.path().join("a/b/ledger.db")).faults,
            Vec::<String>::new()
        );
        assert_eq!(fs::read_dir(folder.path()).expect("a look").count(), 0);
    }

    #[test]
    fn a_place_below_a_file_is_none() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let place = Directory::look(&file.path().join("state/ledger.db"));
        assert!(place.faults[0].contains("cannot be made"), "{place:?}");
    }
}
