//! Remedies for what is no image, or an image in another format.

use std::fs;

use fixtures::{Scratch, needs_qemu, skipped};

use super::shell::{advised, image, refused, shell, works};

#[test]
fn what_is_in_another_format() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    works(&scratch, "qemu-img convert -O vmdk image vmdk; qemu-img convert -O vdi image vdi");
    works(&scratch, "qemu-img convert -O raw image raw");
    for name in ["vmdk", "vdi"] {
        let said = refused(&scratch, &format!("qcowtool checksum {name}"), "convert it with");
        works(&scratch, &advised(&said, "qemu-img convert", &[("FILE", name), ("NEW", "new")]));
        works(&scratch, "qcowtool compare new image");
        assert!(said.contains("give -f raw"), "{said}");
        works(&scratch, &format!("qcowtool checksum -f raw {name}"));
    }
    for program in ["gzip", "bzip2", "xz", "zstd"] {
        works(&scratch, &format!("{program} -c < image > packed"));
        let said = refused(&scratch, "qcowtool checksum packed", "decompress it first");
        works(&scratch, &advised(&said, program, &[("FILE", "packed"), ("NEW", "new")]));
        works(&scratch, "qcowtool compare new image");
    }
    for (packs, program) in [
        ("tar -cf ar image", "tar"),
        ("rm -f ar.zip; zip -q ar.zip image && mv ar.zip ar", "unzip"),
    ] {
        works(&scratch, packs);
        let said = refused(&scratch, "qcowtool checksum ar", "take the disk out");
        works(&scratch, "mv image away");
        works(&scratch, &advised(&said, program, &[("FILE", "ar")]));
        works(&scratch, "qcowtool compare image away");
    }
    // Its magic is enough to know it; not every machine has the program.
    fs::write(scratch.path("ar.7z"), b"7z\xbc\xaf\x27\x1c\0\x04").unwrap();
    let said = refused(&scratch, "qcowtool checksum ar.7z", "take the disk out");
    let unpack = advised(&said, "7z", &[("FILE", "ar.7z")]);
    if shell(&scratch, "rm ar.7z; 7z a ar.7z away").status.success() {
        works(&scratch, &format!("mv away kept && {unpack} && qcowtool compare kept away"));
    } else {
        skipped("no 7z here");
    }
    // Of the second image, the option is another one.
    let said = refused(&scratch, "qcowtool compare -f raw vmdk vmdk", "-F raw");
    assert!(said.contains("-F raw for the second image"), "{said}");
    works(&scratch, "qcowtool compare -f raw -F raw vmdk vmdk");
}

#[test]
fn what_is_shown_as_raw_as_stated_is_warned_of() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    let output = shell(&scratch, "qcowtool info -f raw --output json image");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let words = "'image' is read as raw, as stated, although it looks like a QCOW2 image\n";
    assert!(said.ends_with(words) && said.lines().count() == 1, "{said}");
    let said = shell(&scratch, "qcowtool info image").stderr;
    assert_eq!(String::from_utf8_lossy(&said), "");
}

#[test]
fn what_comes_as_a_stream() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    works(&scratch, "qcowtool flatten -O raw image raw && gzip -k raw");
    let said = refused(&scratch, "qcowtool flatten - new < raw.gz", "decompress it on the way");
    let names = [("FILE", "raw.gz"), ("DST", "new")];
    works(&scratch, &advised(&said, "gzip", &names));
    works(&scratch, "qcowtool compare image new && rm new");
    works(&scratch, "qcowtool flatten -f raw - new < raw.gz && rm new");
    refused(&scratch, "qcowtool flatten - new < image", "save it to a file and name that");
    works(&scratch, "cat < image > saved && qcowtool flatten saved new && rm new");
    refused(&scratch, "qcowtool flatten --size 2M - new < raw", "check --size");
    works(&scratch, "qcowtool flatten --size 1M - new < raw");
}

#[test]
fn what_is_encrypted() {
    needs_qemu!();
    let scratch = Scratch::new();
    fs::write(scratch.path("secret"), "secret").unwrap();
    let create = "qemu-img create -q --object secret,id=key,file=secret";
    works(&scratch, &format!("{create} -f luks -o key-secret=key volume 1M"));
    let options = "encrypt.format=luks,encrypt.key-secret=key";
    works(&scratch, &format!("{create} -f qcow2 -o {options} image 1M"));
    for name in ["volume", "image"] {
        let said = refused(&scratch, &format!("qcowtool checksum {name}"), "decrypt it with");
        let names = [("FILE", name), ("PASSWORD", "secret"), ("NEW", "new")];
        works(&scratch, &advised(&said, "qemu-img convert", &names));
        works(&scratch, "qcowtool checksum new");
    }
}

#[test]
fn what_is_no_local_file() {
    needs_qemu!();
    let scratch = Scratch::new();
    image(&scratch, "image", "");
    works(&scratch, "cp image nbd:image");
    let said = refused(&scratch, "qcowtool checksum nbd:image", "copy it to a local file first");
    assert!(said.contains("./NAME"), "{said}");
    works(&scratch, "qcowtool checksum ./nbd:image");
    let convert = advised(&said, "qemu-img convert", &[]);
    let line = format!(
        "qemu-nbd --fork -r -f qcow2 -k $PWD/socket image && \
         {convert} -O qcow2 'nbd+unix:///?socket=socket' copy && qcowtool compare image copy"
    );
    works(&scratch, &line);
}
