//! Where the control groups of this process lie, from /proc/self/mountinfo and /proc/self/cgroup.
//!
//! Owner: `cgroup`, once at its detection. Invariant: a path is only given if the mount shows the
//! group that this process is in. Absent: any change of the groups.
//!
//! Sources: proc_pid_mountinfo(5), cgroups(7).

use std::path::{Path, PathBuf};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounts {
    /// The folder of this process's group in version 2's hierarchy.
    pub(super) unified: Option<PathBuf>,
    /// … and in version 1's, by controller.
    pub(super) memory_v1: Option<PathBuf>,
    pub(super) pids_v1: Option<PathBuf>,
}

impl Mounts {
    pub(super) fn parse(mountinfo: &str, cgroup: &str) -> Self {
        let mut mounts = Self { unified: None, memory_v1: None, pids_v1: None };
        for mount in mountinfo.lines().filter_map(Mount::parse) {
            let found = match mount.kind {
                "cgroup2" => &mut mounts.unified,
                "cgroup" if mount.has_option("memory") => &mut mounts.memory_v1,
                "cgroup" if mount.has_option("pids") => &mut mounts.pids_v1,
                _ => continue,
            };
            let controller = match mount.kind {
                "cgroup2" => "",
                _ if mount.has_option("memory") => "memory",
                _ => "pids",
            };
            let own = own_group(cgroup, controller).and_then(|own| mount.folder_of(own));
            *found = found.take().or(own);
        }
        mounts
    }
}

struct Mount<'a> {
    /// Which part of the hierarchy is mounted.
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// `36 35 98:0 ROOT POINT OPTIONS [TAGS…] - KIND SOURCE SUPER_OPTIONS`
    fn parse(line: &'a str) -> Option<Self> {
        let (place, what) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let mut what = what.split(' ');
        let (root, point) = (place.next()?, place.next()?);
        let (kind, options) = (what.next()?, what.nth(1)?);
        Some(Self { root, point, kind, options })
    }

    fn has_option(&self, name: &str) -> bool {
        self.options.split(',').any(|option| option == name)
    }

    /// Where a group of the hierarchy is seen; `None` if it is outside of what is mounted.
    fn folder_of(&self, group: &str) -> Option<PathBuf> {
        let below = Path::new(group).strip_prefix(self.root).ok()?;
        // A namespace's group above its own root is written with `..`.
        if below.components().any(|part| part.as_os_str() == "..") || self.point.contains('\\') {
            return None;
        }
        Some(Path::new(self.point).join(below))
    }
}

/// `ID:CONTROLLERS:PATH`; version 2's line has no controllers.
fn own_group<'a>(cgroup: &'a str, controller: &str) -> Option<&'a str> {
    cgroup.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Option<PathBuf> {
        Some(PathBuf::from(text))
    }

    #[test]
    fn version_1_with_an_empty_version_2_beside_it() {
        let mountinfo = "\
23 1 0:20 / /sys rw - sysfs sysfs rw
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
39 31 0:36 / /sys/fs/cgroup/pids rw,relatime shared:9 - cgroup cgroup rw,pids
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let cgroup = "9:name=systemd:/\n8:pids:/\n4:memory:/api/66da\n0::/";
        let mounts = Mounts::parse(mountinfo, cgroup);
        assert_eq!(mounts.memory_v1, path("/sys/fs/cgroup/memory/api/66da"));
        assert_eq!(mounts.pids_v1, path("/sys/fs/cgroup/pids"));
        assert_eq!(mounts.unified, path("/sys/fs/cgroup/unified"));
    }

    #[test]
    fn version_2_under_systemd() {
        let mountinfo = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        let cgroup = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/d.service";
        let mounts = Mounts::parse(mountinfo, cgroup);
        let own = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/d.service";
        assert_eq!(mounts.unified, path(own));
        assert_eq!((mounts.memory_v1, mounts.pids_v1), (None, None));
    }

    #[test]
    fn in_a_container_only_what_is_mounted_is_seen() {
        let mountinfo = "35 31 0:32 /docker/c0 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let inside = Mounts::parse(mountinfo, "4:memory:/docker/c0/sub");
        assert_eq!(inside.memory_v1, path("/sys/fs/cgroup/memory/sub"));
        for outside in ["4:memory:/other", "4:memory:/docker/c0/../c1", "4:cpu:/", ""] {
            assert_eq!(Mounts::parse(mountinfo, outside).memory_v1, None, "{outside}");
        }
    }
}
