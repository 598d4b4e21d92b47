//! `build-images OUT STATIC_BIN_DIR BUSYBOX`: writes the images that `up` and the tests use as OCI
//! archives into `OUT`: `pause` and `test` (busybox with its applets, and the test server).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use images::{File, Image, write_archive};

fn main() -> anyhow::Result<()> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [out, programs, busybox] = args.as_slice() else {
        bail!("usage: build-images OUT STATIC_BIN_DIR BUSYBOX");
    };
    std::fs::create_dir_all(out).with_context(|| out.display().to_string())?;
    for image in [pause(programs), test(programs, busybox)?] {
        let file = image.name.rsplit('/').next().unwrap_or_default().replace(':', "-");
        let path = out.join(format!("{file}.tar"));
        write_archive(&image, &path)?;
        println!("{} {}", image.name, path.display());
    }
    Ok(())
}

fn pause(programs: &Path) -> Image {
    Image {
        name: "localhost/pause:3.10.1".into(),
        files: vec![File::program("pause", programs.join("pause"))],
        entrypoint: vec!["/pause".into()],
        user: "65535:65535".into(),
        ..Image::default()
    }
}

fn test(programs: &Path, busybox: &Path) -> anyhow::Result<Image> {
    let list = Command::new(busybox)
        .arg("--list")
        .output()
        .with_context(|| busybox.display().to_string())?;
    let applets = String::from_utf8(list.stdout)?;
    let mut files = vec![
        File::folder("bin", 0o755),
        File::folder("etc", 0o755),
        File::folder("root", 0o700),
        File::folder("tmp", 0o1777),
        File::folder("var", 0o755),
        File::text(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        ),
        File::text("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        File::program("bin/busybox", busybox),
        File::program("bin/testserver", programs.join("testserver")),
    ];
    let applets = applets.lines().filter(|a| !a.is_empty() && *a != "busybox");
    files.extend(applets.map(|a| File::link(&format!("bin/{a}"), "busybox")));
    Ok(Image {
        name: "localhost/test:1".into(),
        files,
        command: vec!["/bin/sh".into()],
        env: vec!["PATH=/bin".into()],
        ..Image::default()
    })
}
