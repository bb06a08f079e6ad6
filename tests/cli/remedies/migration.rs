//! The remedies of the crate that moves guests: each with the test that carries it out.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PLANS: &str =
    "migrate/tests/planning/remedies.rs a_plan_is_made_once_its_remedy_is_carried_out";
const LIVE: &str =
    "migrate/tests/planning/remedies.rs a_disk_is_flattened_once_the_remedy_is_carried_out";
const CHECKS: &str = "migrate/tests/planning/preflight.rs \
                      a_check_turns_green_or_goes_once_its_remedy_is_carried_out";
const AGENT: &str = "migrate/tests/hosts/store_remote.rs \
                     a_far_end_that_cannot_be_started_is_named_with_what_it_said";
const BACKING: &str = "tests/migrate/ways_out.rs what_an_audit_advises_about_backing_files";
const DAMAGE: &str = "tests/migrate/ways_out.rs what_an_audit_advises_about_damage";
const DELETED: &str = "tests/migrate/ways_out.rs what_an_audit_advises_about_deleted_files";

/// A remedy, and its test as file and function. Those in `tests/migration` need two libvirt hosts. `""`: none carries it out.
const REMEDIES: &[(&str, &str)] = &[
    ("StateStorage", PLANS),
    ("StateShared", PLANS),
    ("MapPath", PLANS),
    (
        "MakeDirectory",
        "migrate/tests/planning/preflight.rs \
         a_directory_that_is_created_or_mapped_is_no_obstacle_any_more",
    ),
    ("AllowDirectory", PLANS),
    (
        "AllowDirectoryOfFile",
        "tests/migrate/directories/guest_files.rs \
         nvram_without_a_directory_there_is_refused_and_making_it_helps",
    ),
    ("EjectOrAllowDirectory", PLANS),
    ("Adopt", PLANS),
    ("MakeDevice", PLANS),
    (
        "OtherHost",
        "tests/migration/relocate.rs the_disks_of_a_guest_that_writes_go_to_another_file_system",
    ),
    ("Eject", PLANS),
    ("AllowDepth", PLANS),
    ("AllowDataFile", PLANS),
    ("DropSnapshots", PLANS),
    ("RecordFormat", BACKING),
    // It needs a guest with an NVDIMM.
    ("MakeFile", ""),
    // It needs a user who plans without the right to read the guest's files.
    ("ReadAsRoot", ""),
    (
        "CopyDirectory",
        "tests/migrate/directories/guest_files.rs \
         the_state_of_a_tpm_is_refused_until_it_was_copied_with_its_owners",
    ),
    // It needs metadata that was damaged, and libvirt to write it again.
    ("AnnotateAgain", ""),
    ("GiveRoots", "tests/migrate/hook.rs installed_the_script_serves_what_libvirt_calls_it_for"),
    ("EditRoots", "tests/migrate/hook.rs installed_the_script_serves_what_libvirt_calls_it_for"),
    ("CopyInFull", CHECKS),
    ("NoSyncWrites", CHECKS),
    ("SetUpTls", CHECKS),
    (
        "RunOnGuestsHost",
        "tests/migration/third_machine.rs what_a_third_machine_is_refused_it_does_on_the_guests_host",
    ),
    ("UseAgent", CHECKS),
    ("StartAgent", AGENT),
    ("OnlyAgent", AGENT),
    // It needs a guest that writes faster than the network, and then a faster network.
    ("MoreTime", ""),
    ("CopyFaster", "tests/migration/faults.rs a_guest_that_outruns_the_copy"),
    (
        "DetachOrTry",
        "migrate/tests/planning/plan_domain.rs \
         what_libvirt_and_qemu_will_not_migrate_is_refused_before_anything_is_made",
    ),
    (
        "Resume",
        "tests/migrate/directories.rs \
         once_its_files_are_being_put_away_a_guest_that_moved_is_not_taken_back",
    ),
    ("ResumeMoved", "tests/migration/faults.rs killed_after"),
    ("ResumePaused", "tests/migration/faults.rs killed_after"),
    // No guest has been lost or doubled by the faults that the tests of two hosts provoke.
    ("StartThenEnd", ""),
    ("StopOneThenEnd", ""),
    ("RollBackLater", "tests/migration/faults.rs the_cable_is_cut_and_mended"),
    (
        "RollBackNothing",
        "tests/migrate/directories.rs a_run_that_was_cut_off_before_it_began_is_rolled_back",
    ),
    ("ResumeOrCopy", LIVE),
    ("FlattenOffline", "tests/cli/remedies/images.rs what_is_in_use"),
    ("MigrateOrCompare", "tests/migration/live.rs a_chain_that_only_the_xml_knows"),
    ("ExtractSnapshots", LIVE),
    ("FlattenEncrypted", "tests/cli/remedies/foreign.rs what_is_encrypted"),
    ("Check", DAMAGE),
    ("OtherTarget", LIVE),
    ("OtherDirectory", LIVE),
    ("RoomOrCopy", LIVE),
    ("KeepRunning", "tests/migration/flatten.rs what_was_lost_is_not_called_done"),
    ("StateDirectory", "tests/migrate/rescue.rs where_the_directory_is_gone_another_must_be_named"),
    ("OtherCopies", "tests/migrate/rescue.rs a_copy_goes_to_another_directory_and_one_comes_back"),
    ("RoomForCopies", "tests/migrate/rescue/hostile.rs too_little_space_elsewhere_is_seen_before"),
    (
        "ChooseManifest",
        "tests/migrate/rescue/candidates.rs \
         manifests_of_a_directory_are_taken_by_name_unless_they_contradict",
    ),
    (
        "SearchCopy",
        "tests/migrate/rescue/candidates.rs \
         a_manifest_finds_the_base_under_any_name_and_it_is_put_back",
    ),
    // It needs two processes that both run the domain, or one in a container.
    ("ChooseProcess", ""),
    (
        "NameGuest",
        "tests/migrate/rescue/candidates.rs the_disk_of_a_guest_that_runs_is_not_searched_for",
    ),
    (
        "Annotate",
        "tests/migration/hook.rs \
         with_nothing_prepared_and_no_metadata_the_refusal_says_what_to_do",
    ),
    (
        "AnnotateOrCopyAll",
        "tests/migration/hook.rs \
         an_empty_stub_of_a_manager_is_no_target_for_an_incremental_copy",
    ),
    ("CopyAll", "tests/migration/hook.rs an_overlay_on_another_template_of_that_name_is_refused"),
    ("ShortenChain", "tests/migrate/ways_out.rs what_an_audit_advises_about_long_chains"),
    ("AbsoluteName", BACKING),
    ("CorrectFormat", BACKING),
    ("CompareManifest", BACKING),
    ("BreakLoop", BACKING),
    ("RestoreDeleted", DELETED),
    ("SaveDeleted", DELETED),
    ("CheckHeader", DAMAGE),
    ("Repair", DAMAGE),
    ("RepairLeaks", DAMAGE),
    ("CheckTruncated", DAMAGE),
    (
        "RebaseAsUsed",
        "tests/migrate/audit/domains.rs a_chain_in_the_xml_that_is_not_that_of_the_headers",
    ),
];

#[test]
fn every_remedy_of_a_migration_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = fs::read_to_string(root.join("migrate/src/remedy.rs")).unwrap();
    let (_, list) = source.split_once("\nremedies! {\n").unwrap();
    let (list, _) = list.split_once("\n}\n").unwrap();
    let variant = |line: &str| {
        let line = line.strip_prefix("    ")?;
        let name = line.split(['(', ' ']).next()?;
        name.starts_with(|c: char| c.is_ascii_uppercase()).then(|| name.to_owned())
    };
    let remedies: BTreeSet<_> = list.lines().filter_map(variant).collect();
    let listed: BTreeSet<_> = REMEDIES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert!(remedies.len() > 50, "{remedies:?}");
    assert_eq!(remedies, listed, "REMEDIES lists all, and nothing else");
    for (name, test) in REMEDIES.iter().filter(|(_, test)| !test.is_empty()) {
        let (file, function) = test.split_once(' ').unwrap();
        let text = fs::read_to_string(root.join(file)).unwrap();
        assert!(text.contains(&format!("fn {}(", function.trim())), "{name}: no {test}");
        // Tests of the planners name the remedy.
        if file.starts_with("migrate/") {
            assert!(text.contains(&format!("Remedy::{name}")), "{name} is not in {file}");
        }
    }
}
