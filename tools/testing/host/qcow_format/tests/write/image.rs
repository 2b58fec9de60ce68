// SPDX-License-Identifier: GPL-2.0

//! Images made by QEMU, of every shape.

use std::{fs, path::Path, process::Command, rc::Rc};

use testkit::{
    store::Store,
    tools::{self, TempDir},
};

use crate::checker::Compressed;

/// What lies below an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    None,
    /// A raw file of so many sectors.
    Raw(u64),
}

/// What an image is like.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    pub cluster: u64,
    pub version: u32,
    pub is_extended: bool,
    pub order: u32,
    pub base: Base,
    pub is_compressed: bool,
    pub is_zstd: bool,
    pub snapshots: u32,
    pub is_lazy: bool,
    pub preallocation: &'static str,
    /// Size of the disk in sectors.
    pub sectors: u64,
    /// Some data is written by QEMU first.
    pub is_filled: bool,
}

impl Spec {
    pub fn new(cluster: u64) -> Self {
        Self {
            cluster,
            version: 3,
            is_extended: false,
            order: 4,
            base: Base::None,
            is_compressed: false,
            is_zstd: false,
            snapshots: 0,
            is_lazy: false,
            preallocation: "off",
            sectors: (cluster / 512) * 24 + 3,
            is_filled: true,
        }
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// In short.
    pub fn name(&self) -> String {
        let mut name = format!("v{} {} order {}", self.version, self.cluster, self.order);
        for (is_set, word) in [
            (self.is_extended, "extended"),
            (self.base != Base::None, "backing"),
            (self.is_compressed, "compressed"),
            (self.is_zstd, "zstd"),
            (self.snapshots > 0, "snapshots"),
            (self.is_lazy, "lazy"),
            (self.preallocation != "off", self.preallocation),
            (!self.is_filled, "empty"),
        ] {
            if is_set {
                name.push(' ');
                name.push_str(word);
            }
        }
        name
    }

    fn options(&self) -> String {
        let mut options = format!(
            "cluster_size={},compat={},refcount_bits={}",
            self.cluster,
            if self.version == 2 { "0.10" } else { "1.1" },
            1 << self.order,
        );
        if self.is_extended {
            options += ",extended_l2=on";
        }
        if self.is_zstd {
            options += ",compression_type=zstd";
        }
        if self.is_lazy {
            options += ",lazy_refcounts=on";
        }
        if self.preallocation != "off" {
            options += ",preallocation=";
            options += self.preallocation;
        }
        options
    }

    /// Makes it.
    pub fn build(&self) -> Image {
        let folder = TempDir::new();
        let path = folder.path("image.qcow2");
        if let Base::Raw(sectors) = self.base {
            let base: Vec<u8> = (0..sectors).flat_map(|it| pattern(it, 77)).collect();
            fs::write(folder.path("base.raw"), base).unwrap();
        }
        if self.is_compressed {
            self.convert(&folder, &path);
        } else {
            self.create(&path);
        }
        if self.is_filled && !self.is_compressed {
            self.fill(&path, 1);
        }
        for number in 0..self.snapshots {
            let name = format!("s{number}");
            run("qemu-img", &["snapshot", "-c", &name, text(&path)]);
            self.fill(&path, u64::from(number) + 2);
        }
        if self.snapshots > 1 {
            run("qemu-img", &["snapshot", "-d", "s0", text(&path)]);
        }
        Image::load(folder, *self)
    }

    fn create(&self, path: &Path) {
        let size = (self.sectors * 512).to_string();
        let options = self.options();
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
        if self.base != Base::None {
            args.extend(["-b", "base.raw", "-F", "raw"]);
        }
        args.extend([text(path), &size]);
        run("qemu-img", &args);
    }

    /// Compressed clusters, some of them of random bytes that do not get smaller, and holes.
    fn convert(&self, folder: &TempDir, path: &Path) {
        let per_cluster = self.cluster / 512;
        let mut disk = Vec::new();
        for sector in 0..self.sectors {
            disk.extend(match sector / per_cluster % 5 {
                0 => pattern(sector, 5),
                4 => [0; 512],
                _ => [(sector / per_cluster) as u8; 512],
            });
        }
        let raw = folder.path("source.raw");
        fs::write(&raw, disk).unwrap();
        let options = self.options();
        let mut args = vec![
            "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", "-o", &options,
        ];
        if self.base != Base::None {
            args.extend(["-B", "base.raw", "-F", "raw"]);
        }
        args.extend([text(&raw), text(path)]);
        run("qemu-img", &args);
    }

    /// Data here and there, and zeros over some of it.
    fn fill(&self, path: &Path, seed: u64) {
        let size = self.sectors * 512;
        let cluster = self.cluster;
        let mut args: Vec<String> = vec!["-f".into(), "qcow2".into()];
        let mut command = |text: String| args.extend(["-c".into(), text]);
        for at in (seed % 3..size / cluster).step_by(3) {
            let pos = at * cluster + at % 3 % (cluster / 512) * 512;
            let len = (cluster * (1 + at % 2)).min(size - pos);
            command(format!(
                "write -q -P {} {pos} {len}",
                (at + seed * 40) % 251 + 1
            ));
        }
        if self.version >= 3 {
            let at = 3 * cluster + seed % 2 * cluster;
            command(format!("write -q -z {at} {}", 2 * cluster));
            command(format!("write -q -z -u {} {cluster}", at + 4 * cluster));
        }
        args.push(text(path).into());
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        run("qemu-io", &args);
    }
}

/// A sector's content, told by its number and a version.
pub fn pattern(sector: u64, version: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    let mut state = (sector << 32) ^ (version << 8) ^ 0x9e37_79b9_7f4a_7c15;
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_be_bytes());
    }
    bytes[0] |= 1;
    bytes
}

/// An image that QEMU made.
pub struct Image {
    pub spec: Spec,
    pub store: Store,
    /// What the guest sees of it, if QEMU is right.
    pub disk: Vec<u8>,
    /// What lies below.
    pub base: Vec<u8>,
    /// What its compressed clusters contain.
    pub compressed: Rc<Compressed>,
    folder: TempDir,
}

impl Image {
    fn load(folder: TempDir, spec: Spec) -> Self {
        let store = Store::new(&fs::read(folder.path("image.qcow2")).unwrap());
        let mut image = Self {
            spec,
            store,
            disk: Vec::new(),
            base: fs::read(folder.path("base.raw")).unwrap_or_default(),
            compressed: Rc::default(),
            folder,
        };
        image.disk = image.qemu_read(&image.store);
        image.compressed = Rc::new(Compressed::learn(&image.store, &image.disk));
        image
    }

    /// What QEMU shows of another state of the image.
    pub fn qemu_read(&self, store: &Store) -> Vec<u8> {
        let path = self.save(store);
        let raw = self.folder.path("out.raw");
        run(
            "qemu-img",
            &[
                "convert",
                "-f",
                "qcow2",
                "-O",
                "raw",
                text(&path),
                text(&raw),
            ],
        );
        fs::read(&raw).unwrap()
    }

    /// Fails unless `qemu-img check` finds neither errors nor leaks in a state of the image.
    #[track_caller]
    pub fn qemu_check(&self, store: &Store, what: &str) {
        let path = self.save(store);
        let output = Command::new("qemu-img")
            .args(["check", "-f", "qcow2", text(&path)])
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{what}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Whether `qemu-img check` finds nothing worse than leaks.
    pub fn qemu_finds_only_leaks(&self, store: &Store) -> Result<(), String> {
        let path = self.save(store);
        let output = Command::new("qemu-img")
            .args(["check", "-f", "qcow2", text(&path)])
            .output()
            .unwrap();
        match output.status.code() {
            Some(0 | 3) => Ok(()),
            _ => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
        }
    }

    /// Lets QEMU work on a state of the image; answers what that makes of it.
    pub fn qemu_io(&self, store: &Store, commands: &[String]) -> Store {
        let path = self.save(store);
        let mut args = vec!["-f", "qcow2"];
        for command in commands {
            args.extend(["-c", command]);
        }
        args.push(text(&path));
        run("qemu-io", &args);
        Store::new(&fs::read(&path).unwrap())
    }

    /// Lets `qemu-img` work on a state of the image, whose name comes last.
    pub fn qemu_img(&self, store: &Store, args: &[&str]) -> Store {
        self.qemu_img_with(store, args, &[])
    }

    /// The same, with other arguments behind the name.
    pub fn qemu_img_with(&self, store: &Store, args: &[&str], behind: &[&str]) -> Store {
        let path = self.save(store);
        let mut args = args.to_vec();
        args.push(text(&path));
        args.extend(behind);
        run("qemu-img", &args);
        Store::new(&fs::read(&path).unwrap())
    }

    fn save(&self, store: &Store) -> std::path::PathBuf {
        let path = self.folder.path("image.qcow2");
        store.save(&path).unwrap();
        path
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a program, which has to succeed.
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {args:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whether there is a QEMU to make images.
pub fn has_qemu() -> bool {
    tools::has_qemu_img()
}
