//! A data directory out of a backup.
//!
//! Positions in it may lie behind what clients have seen: messages that were accepted after the backup are
//! gone, and their numbers are given out again. So the data gets a new id, which clients know it by: they
//! forget their positions and begin anew. The superblock is written last: until then it is no data
//! directory.

use std::fs::File;
use std::io;
use std::path::Path;

use super::super::storage::{Access, DataView};
use super::backup::{
    BackupError, Copied, copied, first_reason, judge, make_directory, make_empty, write_super,
};
use super::manifest::{Manifest, copy_file, failed, sync_directory};

/// Verifies the backup in `from` and makes a data directory of it in `to`.
///
/// # Errors
/// See [`BackupError`]; `to` is no data directory then.
pub fn restore(from: &Path, to: &Path) -> Result<Copied, BackupError> {
    let manifest = Manifest::read(from)?;
    let verdict = judge(from)?;
    if !verdict.sound {
        return Err(BackupError::Damaged {
            path: from.to_owned(),
            reason: first_reason(&verdict),
            what: "nothing was restored",
        });
    }
    let mut super_block = {
        let view = DataView::open(from, Access::Stopped)?;
        view.super_block().clone()
    };
    make_empty(to)?;
    for listed in &manifest.files {
        if listed.file.starts_with("SUPER.") {
            continue;
        }
        let (source, target) = (from.join(&listed.file), to.join(&listed.file));
        if let Some(directory) = target.parent() {
            make_directory(directory)?;
        }
        let file = File::open(&source).map_err(failed("open", &source))?;
        let written = copy_file(&file, &target, listed.file.clone())?;
        if written != *listed {
            let error = io::Error::other("it has changed while it was copied");
            return Err(failed("copy", &source)(error).into());
        }
    }
    for log in 0..super_block.logs {
        for directory in [format!("log-{log:02}"), format!("ckpt-{log:02}")] {
            let directory = to.join(directory);
            make_directory(&directory)?; // one without files is not listed
            sync_directory(&directory).map_err(failed("sync", &directory))?;
        }
    }
    sync_directory(to).map_err(failed("sync", to))?;
    super_block.data_id = draw(to)?;
    super_block.sequence += 1;
    write_super(to, super_block.file_name(), &super_block.encode())?;
    Ok(copied(&manifest, &verdict))
}

/// A new data id; never zero, which would mean that there is none.
fn draw(path: &Path) -> Result<[u8; 16], BackupError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)
        .map_err(io::Error::other)
        .map_err(failed("draw random numbers for", path))?;
    id[0] |= 1;
    Ok(id)
}
