"""Boxes and masks as they lie on disk: COCO JSON, YOLO text files, Pascal VOC XML, PNG masks. Each reader gives a `table.AnnotationTable`."""
