"""Pool, targets and queries of a content filter: disjoint, in an order of their own; what does not do is refused."""

from pathlib import Path

import pytest

from rclip_metric.train.data.filter_pools import FilterPools, Sizes, read_filter_pools

CLASSES = {"cat": 6, "dog": 5, "stapler": 4, "gun": 12}
NAMES = {"unsafe": ["gun"], "buffer": ["stapler"]}
SMALL = Sizes(3, 2, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in CLASSES.items():
        for number in range(count):
            path = tmp_path / name / "deep" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{name} {number}".encode())
    return tmp_path


def keys(pools: FilterPools) -> list[list[str]]:
    return [[image.key for image in part] for part in (pools.pool, pools.targets, pools.queries)]


def test_no_image_is_in_two_parts_and_every_role_has_as_many_as_asked_for(folder: Path) -> None:
    pools = read_filter_pools(folder, NAMES, sizes=SMALL)
    pool, targets, queries = keys(pools)
    assert (len(pool), len(targets), len(queries)) == (9, 4, 8) and len({*pool, *targets, *queries}) == 21
    assert pools.classes == {"safe": ("cat", "dog"), "buffer": ("stapler",), "unsafe": ("gun",)}
    assert [image.role for image in pools.pool] == 3 * ["safe"] + 3 * ["buffer"] + 3 * ["unsafe"]
    assert [image.role for image in pools.queries] == 4 * ["safe"] + 4 * ["unsafe"]
    assert {pools.target(image) for image in pools.queries[:4]} == {"unsafe"} and pools.repeated() == []


def test_the_order_depends_on_seed_and_names_alone(folder: Path) -> None:
    pools = keys(read_filter_pools(folder, NAMES, sizes=SMALL))
    assert pools == keys(read_filter_pools(folder, NAMES, sizes=SMALL))
    assert pools != keys(read_filter_pools(folder, NAMES, sizes=SMALL, seed=1))
    few = keys(read_filter_pools(folder, NAMES, sizes=Sizes(3, 2, 2)))  # fewer queries are the first of them
    assert few[:2] == pools[:2] and few[2] == pools[2][:2] + pools[2][4:6]
    one_way = keys(read_filter_pools(folder, NAMES, sizes=SMALL, directions=[("unsafe", "safe")]))
    assert one_way[2] == pools[2][4:] and one_way[1] == pools[1][:2]  # and one way has those of both ways
    assert keys(read_filter_pools(folder, NAMES, sizes=SMALL, buffer=False))[1:] == pools[1:]


def test_folders_of_their_own_are_taken_whole_or_in_part(tmp_path: Path) -> None:
    for part, count in {"pool": 5, "queries": 4, "targets": 3}.items():
        for name in ("safe", "unsafe"):
            for number in range(count):
                path = tmp_path / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(
                    f"{name} {number if (part, number) == ('queries', 0) else part + str(number)}".encode()
                )
    whole = read_filter_pools(tmp_path)
    assert [len(part) for part in keys(whole)] == [10, 6, 8]
    assert all(image.key.startswith("queries/") for image in whole.queries)
    few = read_filter_pools(tmp_path, sizes=Sizes(2, 1, 4))
    assert [len(each) for each in keys(few)] == [4, 2, 8] and set(keys(few)[0]) < set(keys(whole)[0])
    with pytest.raises(ValueError, match=r"the folder pool has 5 images of safe classes, and 6 are needed: add some"):
        read_filter_pools(tmp_path, sizes=Sizes(6))


def test_a_table_may_say_what_files_show(tmp_path: Path) -> None:
    lines = ["class,file"]
    for number in range(8):
        (tmp_path / f"{number}.png").touch()
        lines.append(f"{'gun' if number % 2 else 'cat'},{number}.png")
    table = tmp_path / "classes.csv"
    table.write_text("\n".join(lines[:-1]))
    pools = read_filter_pools(tmp_path, {"unsafe": ["gun"]}, table=table, sizes=Sizes(1, 1, 1))
    assert {int(Path(key).stem) % 2 for key in keys(pools)[2][:1]} == {0} and len(pools.pool) == 2
    table.write_text("class,file\ngun,elsewhere.png")
    with pytest.raises(ValueError, match="names no image below"):
        read_filter_pools(tmp_path, {"unsafe": ["gun"]}, table=table)


def test_the_published_sets_names_have_roles(tmp_path: Path) -> None:
    for name in ("drawings", "hentai", "neutral", "porn", "sexy"):
        for number in range(3):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.png").touch()
    pools = read_filter_pools(tmp_path, sizes=Sizes(1, 1, 1))
    assert pools.classes == {"safe": ("neutral",), "buffer": ("sexy",), "unsafe": ("porn",)}


def test_the_same_bytes_in_pool_and_queries_are_counted(folder: Path) -> None:
    pools = read_filter_pools(folder, NAMES, sizes=SMALL)
    for query, known in zip(pools.queries[:2], pools.pool, strict=False):
        query.path.write_bytes(known.path.read_bytes())
    pools.targets[0].path.write_bytes(pools.pool[0].path.read_bytes())
    queries, targets = pools.repeated()
    assert queries.startswith("2 of 8 queries are in the pool as well, byte for byte")
    assert targets.startswith("1 of 4 target images is in the pool as well, byte for byte")


@pytest.mark.parametrize(
    ("names", "sizes", "message"),
    [
        ({"unsafe": ["rifle"]}, SMALL, r"has no class 'rifle', it has cat, dog, gun, stapler"),
        ({}, SMALL, r"none of the classes cat, dog, gun, stapler is known to be unsafe: name some with --unsafe"),
        ({"unsafe": ["gun"], "safe": ["gun"]}, SMALL, "the class 'gun' is named twice: a class has one role"),
        ({"unsafe": ["gun", "cat", "dog", "stapler"]}, SMALL, "is known to be safe: name some with --safe"),
        (
            NAMES,
            Sizes(8, 2, 4),
            r"the safe classes have 11 images, and 8 for the pool, 2 targets and 4 queries are asked for: lower",
        ),
        (NAMES, Sizes(), r"the safe classes have 11 images, and 500 for the pool, 16 targets and 1000 queries"),
    ],
)
def test_what_does_not_do_is_refused_in_a_sentence(folder: Path, names: dict, sizes: Sizes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_filter_pools(folder, names, sizes=sizes)


def test_an_empty_class_and_odd_directions_are_refused(folder: Path) -> None:
    (folder / "bird").mkdir()
    with pytest.raises(ValueError, match=r"the class folder .*bird holds no images: add some or remove it"):
        read_filter_pools(folder, NAMES, sizes=SMALL)
    (folder / "bird").rmdir()
    with pytest.raises(ValueError, match="queries of 'safe' that shall pass for 'safe': expected two different ones"):
        read_filter_pools(folder, NAMES, sizes=SMALL, directions=[("safe", "safe")])
    with pytest.raises(ValueError, match="expected two different ones of safe, unsafe"):
        read_filter_pools(folder, NAMES, sizes=SMALL, directions=[("safe", "buffer")], buffer=False)
    with pytest.raises(ValueError, match="at least one image is needed per role, and 0 were asked for as pool"):
        Sizes(0)
