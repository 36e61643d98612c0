r"""Lists the networks of the papers, and shows what is known about one.

    python -m memvid_tf.models.zoo list
    python -m memvid_tf.models.zoo show interleaved

show counts the network at paper scale, which takes seconds, and prints the commands that train,
export and run it and its tiny twin. Where a trained bundle of the twin lies in the repository it says
how to run that at once.
"""

from absl import flags

from memvid_tf import errors
from memvid_tf.models import zoo
from memvid_tf.models.zoo import pages

FLAGS = flags.FLAGS
flags.DEFINE_bool(
    "count", True, "show: whether to count the network, which loads TensorFlow. Example: --nocount"
)


def main(argv):
    if argv[1:] == ["list"]:
        print(pages.listing())
    elif len(argv) == 3 and argv[1] == "show":
        entry = zoo.find(argv[2])
        print(pages.page(entry, pages.counted(entry) if FLAGS.count else ""))
    else:
        raise errors.UserError(
            f"{' '.join(argv[1:]) or 'nothing'!r} is not 'list' or 'show NAME'; for example "
            "python -m memvid_tf.models.zoo show interleaved"
        )


if __name__ == "__main__":
    errors.run(main)
